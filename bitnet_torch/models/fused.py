"""The stages of a decoder layer that run as one op where they can: the only place that decides.

::

    normalise, project    norm -> quantise -> q, k, v     rms_norm_quantize, multi_ternary_linear
    gate, project         act(g) * u -> norm -> quantise  glu_norm_quantize, multi_ternary_linear

Between the two calls the activations are codes instead of floats. A fused op is by definition
the composition of its parts, so whether a stage is fused shows in no bit of a result, only in
time. It is fused in inference, when its norm is the decoder's own, its linear layers are
packed, and nobody watches or changes what flows between them: no hooks, no
replaced ``forward``, no autocast. Anything else calls the modules one after another; but in
training, too, q/k/v and gate/up quantise their common input once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from bitnet_torch.nn._autocast import in_autocast
from bitnet_torch.nn.bit_linear import BitLinear, on_one_input
from bitnet_torch.nn.norm import RMSNorm
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.ops.glu import glu
from bitnet_torch.ops.glu_norm_quantize import glu_norm_quantize
from bitnet_torch.ops.multi_ternary_linear import multi_ternary_linear
from bitnet_torch.ops.rms_norm_quantize import rms_norm_quantize

# Without a norm its eps is not used, but must be valid.
_NO_NORM_EPS = 1.0


class QuantizedRows(NamedTuple):
    """Activations on their way to linear layers, quantised already.

    Attributes:
        codes: (..., K) int8.
        scale: (...) float32.
        dtype: Of the activations before, and of what the layers return.
    """

    codes: Tensor
    scale: Tensor
    dtype: torch.dtype


def readers(block: nn.Module) -> tuple[nn.Module, ...]:
    """Return the linear layers that read the input of ``block``, if it may be given codes.

    A block says so in ``input_projections``, the names of these layers. What it says holds for
    this class only: a subclass has a ``forward`` of its own.
    """
    names = vars(type(block)).get("input_projections", ())
    return tuple(getattr(block, name) for name in names) if _unwatched(block) else ()


def normalise(
    norm: nn.Module | None, x: Tensor, linears: Sequence[nn.Module]
) -> Tensor | QuantizedRows:
    """Return ``norm(x)`` for :func:`project` with these layers, as codes where that is possible."""
    if type(norm) is RMSNorm and _unwatched(norm) and _take_codes(linears, x):
        return QuantizedRows(*rms_norm_quantize(x, norm.weight, norm.eps), x.dtype)
    return x if norm is None else norm(x)


def gate(
    g: Tensor, u: Tensor, activation: str, norm: nn.Module | None, linears: Sequence[nn.Module]
) -> Tensor | QuantizedRows:
    """Return ``norm(glu(g, u))`` for :func:`project`, as codes where that is possible."""
    if norm is None and _take_codes(linears, g):
        return QuantizedRows(*glu_norm_quantize(g, u, None, _NO_NORM_EPS, activation), g.dtype)
    if type(norm) is RMSNorm and _unwatched(norm) and _take_codes(linears, g):
        codes = glu_norm_quantize(g, u, norm.weight, norm.eps, activation)
        return QuantizedRows(*codes, g.dtype)
    inner: Tensor = glu(g, u, activation)
    return inner if norm is None else norm(inner)


def project(linears: Sequence[nn.Module], h: Tensor | QuantizedRows) -> list[Tensor]:
    """Return what each layer makes of ``h``, which was made for exactly these layers."""
    if isinstance(h, Tensor):
        if _share_codes(linears):
            return on_one_input(cast(Sequence[BitLinear], linears), h)
        return [linear(h) for linear in linears]
    packed = cast(Sequence[PackedBitLinear], linears)
    if len({linear.layout for linear in packed}) > 1:
        return [_multiply([linear], h)[0] for linear in packed]
    return _multiply(packed, h)


def _multiply(packed: Sequence[PackedBitLinear], h: QuantizedRows) -> list[Tensor]:
    ys: list[Tensor] = multi_ternary_linear(
        h.codes,
        h.scale,
        [linear.prepacked for linear in packed],
        packed[0].layout,
        [linear.weight_scale for linear in packed],
        [linear.out_features for linear in packed],
        h.dtype,
        [linear.bias for linear in packed],
    )
    return ys


def _take_codes(linears: Sequence[nn.Module], x: Tensor) -> bool:
    """Return whether packed layers would read ``x``, unseen by anyone else."""
    if not linears or torch.is_grad_enabled() or in_autocast(x.device.type):
        return False
    in_features = x.shape[-1]
    return all(
        type(linear) is PackedBitLinear and linear.in_features == in_features and _unwatched(linear)
        for linear in linears
    )


def _share_codes(linears: Sequence[nn.Module]) -> bool:
    """Return whether several layers in training would quantise the same, unseen by anyone else."""
    return len(linears) > 1 and all(
        type(linear) is BitLinear and _unwatched(linear) for linear in linears
    )


def _unwatched(module: nn.Module) -> bool:
    """Return whether calling ``module`` runs its class's ``forward`` and nothing else."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )
