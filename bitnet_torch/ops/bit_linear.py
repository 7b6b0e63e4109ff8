"""Quantise activations and multiply by packed ternary weights: contracts and references.

``bit_linear`` is by definition the composition::

    x_q, x_scale = quantize_activation(x)
    y            = ternary_linear(x_q, x_scale, packed, w_scale, N, x.dtype, bias)

``bit_linear_prepacked`` is the same function of the same codes, held in the layout that a
backend prefers (:mod:`bitnet_torch.ops.layouts`). Modules call it; ``bit_linear`` takes the
exchange layout and repacks on each call where a backend needs that.

==========  ===============  ========  =============================================
argument    shape            dtype     meaning
==========  ===============  ========  =============================================
x           (..., K)         float     float32, bfloat16 or float16, any strides
packed      (ceil(N/4), K)   uint8     exchange layout, see ``pack_codes``
prepacked   by layout        uint8     the same codes in layout ``layout``
layout      --               str       a name in ``layouts.LAYOUTS``
w_scale     (), (1,), (N,)   float32   weight quantum of the matrix, or of each row
N           --               int       out_features
bias        (N,)             float     optional
y           (..., N)         x.dtype   contiguous
==========  ===============  ========  =============================================

Source: Ma et al. 2024 (arXiv:2402.17764), section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import (
    FLOATS,
    check_bias,
    check_dtype,
    check_k,
    check_packed,
    check_same_device,
    check_weight_scale,
)
from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.layouts import check_prepacked, layout_named
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.ternary_linear import ternary_linear


def _check_x(x: Tensor, w_scale: Tensor, N: int, bias: Tensor | None) -> None:
    check_dtype("x", x, *FLOATS)
    if x.dim() < 1:
        raise ShapeError("x must have at least one dimension, got a scalar")
    check_k("x", x.shape[-1])
    check_weight_scale(w_scale, N)
    check_bias(bias, N)


def _check(x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None = None) -> None:
    _check_x(x, w_scale, N, bias)
    check_packed(packed, x.shape[-1], N)
    check_same_device(x=x, packed=packed, w_scale=w_scale, bias=bias)


def _fake(x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None = None) -> Tensor:
    return torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)


@declare(
    "bit_linear(Tensor x, Tensor packed, Tensor w_scale, int N, Tensor? bias=None) -> Tensor",
    check=_check,
    fake=_fake,
)
def bit_linear(
    x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None = None
) -> Tensor:
    """Apply a ternary linear layer to float activations. See the module docstring."""
    x_q, x_scale = quantize_activation.impls["reference"](x)
    y: Tensor = ternary_linear.impls["reference"](x_q, x_scale, packed, w_scale, N, x.dtype, bias)
    return y


def _check_prepacked(
    x: Tensor,
    prepacked: Tensor,
    layout: str,
    w_scale: Tensor,
    N: int,
    bias: Tensor | None = None,
) -> None:
    _check_x(x, w_scale, N, bias)
    check_prepacked(prepacked, layout, N, x.shape[-1])
    check_same_device(x=x, prepacked=prepacked, w_scale=w_scale, bias=bias)


def _fake_prepacked(
    x: Tensor,
    prepacked: Tensor,
    layout: str,
    w_scale: Tensor,
    N: int,
    bias: Tensor | None = None,
) -> Tensor:
    return torch.empty((*x.shape[:-1], N), dtype=x.dtype, device=x.device)


@declare(
    "bit_linear_prepacked(Tensor x, Tensor prepacked, str layout, Tensor w_scale, int N, "
    "Tensor? bias=None) -> Tensor",
    check=_check_prepacked,
    fake=_fake_prepacked,
)
def bit_linear_prepacked(
    x: Tensor,
    prepacked: Tensor,
    layout: str,
    w_scale: Tensor,
    N: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Apply a ternary linear layer whose codes lie in a backend's layout."""
    packed = layout_named(layout).unpack(prepacked, N, x.shape[-1])
    y: Tensor = bit_linear.impls["reference"](x, packed, w_scale, N, bias)
    return y
