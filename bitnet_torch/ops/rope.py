"""Rotary position embedding on half-split pairs: the contract, the reference, the gradient.

Element j of a head turns together with element ``j + D/2``. In float32 whatever the input
dtype (``fl32`` rounds once to float32, ``rne_dtype`` once to x's dtype)::

    y[j]       = rne_dtype(fl32(fl32(x[j] * cos[j])       - fl32(x[j + D/2] * sin[j])))
    y[j + D/2] = rne_dtype(fl32(fl32(x[j + D/2] * cos[j]) + fl32(x[j] * sin[j])))

The tables are data that the model carries, made once in float64 on the CPU; they are float32
whatever the dtype of x.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
x           (..., D)     float32, bfloat16,       heads, any strides, D even
                         float16
cos         broadcasts   float32                  cosines of the positions; broadcast
            to (...,                              against x's leading dimensions,
            D/2)                                  never the other way
sin         cos's        float32                  their sines
y           (..., D)     x's                      contiguous
==========  ===========  =======================  ===================================

The gradient of x is the rotation by the opposite angle, ``rope(grad, cos, -sin)``: the
transposed matrix. Tables have no gradient and refuse one by name.

Source: Su et al. 2021, "RoFormer" (arXiv:2104.09864); half-split pairs as in transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import NotDifferentiableError, ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_same_device
from bitnet_torch.ops._registry import Gradient, declare


def _check(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    check_dtype("x", x, *FLOATS)
    check_dtype("cos", cos, torch.float32)
    check_dtype("sin", sin, torch.float32)
    if x.dim() < 1 or x.shape[-1] % 2:
        raise ShapeError(f"x must be (..., D) with an even D, got {tuple(x.shape)}")
    wanted = (*x.shape[:-1], x.shape[-1] // 2)
    if not _broadcasts(tuple(cos.shape), wanted):
        raise ShapeError(f"cos must broadcast to (..., D/2) = {wanted}, got {tuple(cos.shape)}")
    if sin.shape != cos.shape:
        raise ShapeError(f"sin must have cos's shape {tuple(cos.shape)}, got {tuple(sin.shape)}")
    check_same_device(x=x, cos=cos, sin=sin)


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    # The last dimension is never stretched: one angle for all pairs is no rotary embedding.
    if not shape or len(shape) > len(wanted) or shape[-1] != wanted[-1]:
        return False
    pairs = zip(reversed(shape), reversed(wanted), strict=False)
    return all(size in (1, target) for size, target in pairs)


def _fake(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        raise NotDifferentiableError("rope's tables cos and sin are data, without a gradient")
    cos, sin = ctx.saved_tensors
    return rope(grad, cos, -sin), None, None


@declare(
    "rope(Tensor x, Tensor cos, Tensor sin) -> Tensor",
    check=_check,
    fake=_fake,
    gradient=Gradient(_setup, _backward),
)
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head of ``x`` by its position's angles. See the module docstring."""
    x1, x2 = x.to(torch.float32).chunk(2, -1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1).to(x.dtype)
