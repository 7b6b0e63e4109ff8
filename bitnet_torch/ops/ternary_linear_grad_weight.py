"""Gradient of a ternary linear layer for its latent weight: the contract and the reference.

The straight-through estimator, as for the input (``ternary_linear_grad_input``). With G the
gradient of y::

    dw[n, k] = rne_dtype( sum_m  fl32(G[m, n]) * fl32(x_q[m, k] * x_scale[m]) )

==========  ===============  =======================  =====================================
argument    shape            dtype                    meaning
==========  ===============  =======================  =====================================
grad        (..., N)         float32, bfloat16,       G, any strides
                             float16
x_q         (..., K)         int8                     codes of the input, any strides
x_scale     (...)            float32                  its quantum per token
dtype       --               --                       of dw: float32, bfloat16 or float16
dw          (N, K)           dtype                    contiguous
==========  ===============  =======================  =====================================

M is the number of tokens, the product of the leading dimensions. The sum is accumulated in
float32 (the reference: float64, where a device has it) in an order that depends on M only, so
on one backend a result depends on neither the other rows and columns nor the number of threads.
Between backends the order differs: each is within

    (M + 1) * 2^-24 * sum_m |term|

of the exact sum before its rounding to dtype.

Source: Ma et al. 2024 (arXiv:2402.17764), section 2; Bengio et al. 2013 (arXiv:1308.3432) for
the estimator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import (
    FLOATS,
    check_dtype,
    check_float_dtype,
    check_quantised,
    check_same_device,
    wide_float,
)
from bitnet_torch.ops._registry import declare


def _check(grad: Tensor, x_q: Tensor, x_scale: Tensor, dtype: torch.dtype) -> None:
    check_dtype("grad", grad, *FLOATS)
    check_quantised(x_q, x_scale)
    if grad.dim() < 1 or grad.shape[:-1] != x_scale.shape:
        raise ShapeError(
            f"grad must have x_q's leading shape {tuple(x_scale.shape)} and N columns, "
            f"got {tuple(grad.shape)}"
        )
    check_float_dtype("dtype", dtype)
    check_same_device(grad=grad, x_q=x_q, x_scale=x_scale)


def _fake(grad: Tensor, x_q: Tensor, x_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty((grad.shape[-1], x_q.shape[-1]), dtype=dtype, device=grad.device)


@declare(
    "ternary_linear_grad_weight(Tensor grad, Tensor x_q, Tensor x_scale, ScalarType dtype) "
    "-> Tensor",
    check=_check,
    fake=_fake,
)
def ternary_linear_grad_weight(
    grad: Tensor, x_q: Tensor, x_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of the latent weight. See the module docstring."""
    m, wide = x_scale.numel(), wide_float(grad.device)
    x = x_q.to(torch.float32) * x_scale[..., None]
    dw = grad.reshape(m, grad.shape[-1]).to(wide).T @ x.reshape(m, x_q.shape[-1]).to(wide)
    return dw.to(torch.float32).to(dtype)
