"""Linear layer on float weights whose sums have one order: contract, reference and gradients.

Maths (``fma(a, b, c)`` rounds ``a * b + c`` once to float32). Both rows are widened to float32,
exactly, and padded with +0.0 to a multiple of 8 columns. Eight lanes sum every eighth column::

    l_i = 0;  for s = 0, 1, ...:  l_i = fma(x[m, 8 s + i], weight[n, 8 s + i], l_i)    i = 0 .. 7
    t_i = fl32(l_i + l_{i+4})                                                        i = 0 .. 3
    acc = fl32(fl32(t_0 + t_2) + fl32(t_1 + t_3))
    y[m, n] = rne_dtype(acc), with a bias rne_dtype(fl32(acc + fl32(bias[n])))

The order depends on K only: the same bits for any M, N, batch, strides and number of threads,
which ``F.linear`` does not give. The reference and the CPU kernels follow it to the bit. Another
backend may have another order, again of K only, and fused or unfused products. Any sum of K
float32 products in any order is off by at most

    gamma * sum_k |x[m, k] * weight[n, k]| + tiny,       gamma = c u / (1 - c u),  c = K + 8,
                                                         u = 2^-24,  tiny = c * 2^-149

(Higham 2002, section 3.1; ``tiny`` is what gradual underflow loses) while nothing overflows, so
between two backends, with v the unit roundoff of the dtype (2^-24, 2^-8, 2^-11)::

    |difference| <= (2 * (gamma * (sum_k |x * weight| + |bias|) + tiny)) * (1 + v) + 2 * v * |y|

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
x           (..., K)     float32, bfloat16,       activations, any strides
                         float16
weight      (N, K)       float32, bfloat16,       weights, of x's dtype or another
                         float16
bias        (N,)         float32, bfloat16,       optional
                         float16
dtype       --           --                       of y: any of the three; None is x's
y           (..., N)     dtype                    contiguous
==========  ===========  =======================  ===================================

Gradients are plain products in the wider of x's and weight's dtypes, as PyTorch's own are::

    dx = G @ weight        dweight = G^T @ x        dbias = sum over rows of G, in float32

Source: Vaswani et al. 2017 (arXiv:1706.03762) for the layer; the order is this project's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._autocast import without_autocast
from bitnet_torch.ops._checks import (
    FLOATS,
    check_bias,
    check_dtype,
    check_float_dtype,
    check_same_device,
)
from bitnet_torch.ops._exact import fma
from bitnet_torch.ops._registry import Gradient, declare

LANES = 8


def check_weight(x: Tensor, weight: Tensor) -> None:
    """Raise unless the rows of float ``x`` fit float ``weight`` (N, K)."""
    check_dtype("x", x, *FLOATS)
    check_dtype("weight", weight, *FLOATS)
    if weight.dim() != 2:
        raise ShapeError(f"weight must be (N, K), got {tuple(weight.shape)}")
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"x must be (..., K) = (..., {weight.shape[1]}), got {tuple(x.shape)}")


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> None:
    check_weight(x, weight)
    check_bias(bias, weight.shape[0])
    if dtype is not None:
        check_float_dtype("dtype", dtype)
    check_same_device(x=x, weight=weight, bias=bias)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=dtype or x.dtype, device=x.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


@once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    common = torch.promote_types(x.dtype, weight.dtype)
    # Not -1: an empty tensor has no size to infer it from.
    rows = grad.reshape(x.shape[:-1].numel(), weight.shape[0])
    g = rows.to(common)
    dx = dweight = dbias = None
    # The products are in that dtype even if backward is called inside an autocast block.
    with without_autocast(grad.device.type):
        if ctx.needs_input_grad[0]:
            dx = (g @ weight.to(common)).to(x.dtype).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            columns = x.reshape(rows.shape[0], weight.shape[1]).to(common)
            dweight = (g.T @ columns).to(weight.dtype)
        # PyTorch counts only the arguments that were given: without a bias there may be no [2].
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            dbias = rows.to(torch.float32).sum(0).to(ctx.bias_dtype)
    return dx, dweight, dbias, None


@declare(
    "float_linear(Tensor x, Tensor weight, Tensor? bias=None, ScalarType? dtype=None) -> Tensor",
    check=_check,
    fake=_fake,
    gradient=Gradient(_setup, _backward),
)
def float_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Compute ``x @ weight.T + bias``. See the module docstring."""
    rows = _lanes(x.reshape(x.shape[:-1].numel(), x.shape[-1]))
    columns = _lanes(weight)
    lane = rows.new_zeros(rows.shape[0], columns.shape[0], LANES)
    for step in range(rows.shape[1]):
        lane = fma(rows[:, None, step], columns[None, :, step], lane)
    half = lane[..., :4] + lane[..., 4:]
    acc = (half[..., 0] + half[..., 2]) + (half[..., 1] + half[..., 3])
    if bias is not None:
        acc = acc + bias.to(torch.float32)
    return acc.to(dtype or x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def _lanes(matrix: Tensor) -> Tensor:
    """Return (R, K) as float32 (R, ceil(K/8), 8), padded with zeros."""
    steps = -(-matrix.shape[1] // LANES)
    padded = F.pad(matrix.to(torch.float32), (0, steps * LANES - matrix.shape[1]))
    return padded.reshape(matrix.shape[0], steps, LANES)
