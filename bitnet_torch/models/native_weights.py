"""What a decoder is made of, in the terms of :mod:`bitnet_torch.ops.decoder_step`."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models.decoder_layer import Attention, DecoderLayer, FeedForward
from bitnet_torch.models.rotary import RotaryTables
from bitnet_torch.nn.norm import RMSNorm
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.ops._checks import FLOATS
from bitnet_torch.ops.decoder_step import DecoderWeights, LayerWeights, Matrix, Norm

M = TypeVar("M")


class Unfit(ConfigurationError):
    """Why a decoder must run op by op. It never leaves this package."""


def weights_of(
    decoder: nn.Module, layout: str, neurons: tuple[str, str] | None = None
) -> DecoderWeights:
    """Return the weights of a packed decoder, without copying any.

    Args:
        decoder: Of any kind.
        layout: In which the codes must be.
        neurons: Layouts in which those of up and down may be instead.

    Raises:
        Unfit: It is not one of ours, not packed throughout, or a tensor has an unusual form.
    """
    from bitnet_torch.models.transformer import Decoder

    own = _only(decoder, Decoder)
    embedding, tables = _only(own.embed_tokens, nn.Embedding), _only(own.rotary, RotaryTables)
    if embedding.max_norm is not None:
        raise Unfit("its embedding changes with use")
    if not own.layers:
        raise Unfit("it has no layer")
    layers = tuple(_layer(layer, layout, neurons) for layer in own.layers)
    (activation, head_dim), *others = {_settings(layer) for layer in own.layers}
    norm = _norm(own.norm)
    if others or norm is None:
        raise Unfit("its layers differ in more than weights, or its last norm is missing")
    queries, keys = layers[0].matrices[:2]
    return DecoderWeights(
        embedding=_tensor(embedding.weight, FLOATS),
        layers=layers,
        norm=norm,
        cos=_tensor(tables.cos, (torch.float32,)),
        sin=_tensor(tables.sin, (torch.float32,)),
        heads=queries.n // head_dim,
        kv_heads=keys.n // head_dim,
        activation=activation,
    )


def _settings(layer: nn.Module) -> tuple[str, int]:
    own = cast(DecoderLayer, layer)
    return own.mlp.activation, own.self_attn.head_dim


def _layer(layer: nn.Module, layout: str, neurons: tuple[str, str] | None) -> LayerWeights:
    own = _only(layer, DecoderLayer)
    a, f = _only(own.self_attn, Attention), _only(own.mlp, FeedForward)
    linears = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj)
    before_q, before_gate = own.input_layernorm, own.post_attention_layernorm
    norms = (before_q, a.q_norm, a.k_norm, a.attn_sub_norm, before_gate, f.ffn_sub_norm)
    if before_q is None or before_gate is None or (a.q_norm is None) != (a.k_norm is None):
        raise Unfit("a norm is missing")
    others = (*[layout] * 5, *(neurons or (layout, layout)))
    matrices = (_matrix(m, (layout, other)) for m, other in zip(linears, others, strict=True))
    return LayerWeights(tuple(matrices), tuple(_norm(norm) for norm in norms))


def _matrix(linear: nn.Module, layouts: tuple[str, str]) -> Matrix:
    linear = _only(linear, PackedBitLinear)
    if linear.layout not in layouts:
        raise Unfit(f"a layer holds its codes in layout {linear.layout!r}")
    return Matrix(
        _tensor(linear.prepacked, (torch.uint8,)),
        _tensor(linear.weight_scale, (torch.float32,)),
        None if linear.bias is None else _tensor(linear.bias, FLOATS),
        linear.out_features,
        linear.in_features,
        linear.layout,
    )


def _norm(norm: nn.Module | None) -> Norm | None:
    if norm is None:
        return None
    own = _only(norm, RMSNorm)
    return Norm(_tensor(own.weight, FLOATS), own.eps)


def _tensor(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype not in dtypes:
        raise Unfit(f"a tensor is a {type(tensor).__name__} of {tensor.dtype}")
    if not tensor.is_contiguous():
        raise Unfit("a tensor is not contiguous")
    return tensor.detach()


def _only(module: object, wanted: type[M]) -> M:
    """Return ``module``, whose class is ``wanted`` itself: a subclass has a forward of its own."""
    if type(module) is not wanted:
        raise Unfit(f"a {type(module).__name__} stands for a {wanted.__name__}")
    return module
