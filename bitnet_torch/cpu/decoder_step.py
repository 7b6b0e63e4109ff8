"""Decoder steps on the CPU: the arguments of decoder_step.cpp, filled in once for a model."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bitnet_torch.cpu import neuron_rows, panel8
from bitnet_torch.cpu._library import (
    ACTIVATION_CODE,
    BAD_VALUE,
    DTYPE_CODE,
    FLOAT,
    INT,
    POINTER,
    SIZE,
    failure,
    function,
)
from bitnet_torch.cpu.multi_ternary_linear import MatrixArguments
from bitnet_torch.ops._cache_checks import no_room
from bitnet_torch.ops.attention import score_factor
from bitnet_torch.ops.decoder_step import (
    Backend,
    CacheViews,
    DecoderWeights,
    LayerWeights,
    Matrix,
    Norm,
    register_decoder_step,
)

# A larger call spends its time in the products, and would need working memory to match.
MOST_TOKENS = 32


class _Norm(ctypes.Structure):
    _fields_ = (("weight", POINTER), ("dtype", INT), ("eps", FLOAT))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("matrices", MatrixArguments * 7),
        ("norms", _Norm * 6),
        ("up_by_neuron", INT),
        ("down_by_neuron", INT),
    )


class _Step(ctypes.Structure):
    """``StepArguments`` of decoder_step.cpp."""

    _fields_ = (
        ("embedding", POINTER),
        ("cos", POINTER),
        ("sin", POINTER),
        ("layers", ctypes.POINTER(_Layer)),
        *((name, SIZE) for name in ("layer_count", "vocab", "hidden", "inner", "heads")),
        *((name, SIZE) for name in ("kv_heads", "D", "positions")),
        ("norm", _Norm),
        ("factor", FLOAT),
        ("dtype", INT),
        ("activation", INT),
    )


class _Call(ctypes.Structure):
    """``CallArguments`` of decoder_step.cpp."""

    _fields_ = (
        ("ids", POINTER),
        ("B", SIZE),
        ("T", SIZE),
        ("storage", POINTER),
        ("scales", POINTER),
        ("L", SIZE),
        ("start", POINTER),
        ("first", POINTER),
        ("out", POINTER),
        ("live", POINTER),
    )


_kernel = function("decoder_step", ctypes.POINTER(_Step), ctypes.POINTER(_Call), INT)


class Runner:
    """One model's weights as the kernel takes them.

    Args:
        weights: Kept alive; their memory must stay where it is.
    """

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = weights
        self._layers = (_Layer * len(weights.layers))(*map(_layer, weights.layers))
        vocab, hidden = weights.embedding.shape
        head_dim = 2 * weights.cos.shape[1]
        self._step = _Step(
            embedding=weights.embedding.data_ptr(),
            cos=weights.cos.data_ptr(),
            sin=weights.sin.data_ptr(),
            layers=self._layers,
            layer_count=len(weights.layers),
            vocab=vocab,
            hidden=hidden,
            inner=weights.layers[0].matrices[4].n if weights.layers else 0,
            heads=weights.heads,
            kv_heads=weights.kv_heads,
            D=head_dim,
            positions=weights.cos.shape[0],
            norm=_norm(weights.norm),
            factor=score_factor(head_dim),
            dtype=DTYPE_CODE[weights.embedding.dtype],
            activation=ACTIVATION_CODE[weights.activation],
        )

    def __call__(self, input_ids: Tensor, cache: CacheViews, live: Tensor | None = None) -> Tensor:
        """Run the step; see :class:`bitnet_torch.ops.decoder_step.Runner`."""
        ids = input_ids.to(torch.int64).contiguous()
        batch, tokens = ids.shape
        length = cache.storage.shape[4]
        out = self._weights.embedding.new_empty((batch, tokens, self._step.hidden))
        # Made anew: several threads may generate with one model.
        call = _Call(
            ids=ids.data_ptr(),
            B=batch,
            T=tokens,
            storage=cache.storage.data_ptr(),
            scales=None if cache.scales is None else cache.scales.data_ptr(),
            L=length,
            start=cache.start.data_ptr(),
            first=cache.first.data_ptr(),
            out=out.data_ptr(),
            live=None if live is None else live.data_ptr(),
        )
        status = _kernel(self._step, call, torch.get_num_threads())
        if status == BAD_VALUE:
            raise no_room(cache.start, tokens, length)
        if status:
            raise failure("decoder_step", status)
        return out


def _layer(weights: LayerWeights) -> _Layer:
    return _Layer(
        matrices=(MatrixArguments * 7)(*map(_matrix, weights.matrices)),
        norms=(_Norm * 6)(*map(_norm, weights.norms)),
        up_by_neuron=weights.matrices[5].layout == neuron_rows.ROWS,
        down_by_neuron=weights.matrices[6].layout == neuron_rows.COLUMNS,
    )


def _matrix(matrix: Matrix) -> MatrixArguments:
    bias = matrix.bias
    return MatrixArguments(
        panels=matrix.codes.data_ptr(),
        panels_bytes=matrix.codes.numel(),
        w_scale=matrix.w_scale.data_ptr(),
        w_scale_count=matrix.w_scale.numel(),
        bias=None if bias is None else bias.data_ptr(),
        bias_dtype=0 if bias is None else DTYPE_CODE[bias.dtype],
        N=matrix.n,
        K=matrix.k,
    )


def _norm(norm: Norm | None) -> _Norm:
    if norm is None:
        return _Norm()
    return _Norm(weight=norm.weight.data_ptr(), dtype=DTYPE_CODE[norm.weight.dtype], eps=norm.eps)


register_decoder_step(
    Backend("cpu", panel8.NAME, MOST_TOKENS, Runner, (neuron_rows.ROWS, neuron_rows.COLUMNS)),
    device="cpu",
)
