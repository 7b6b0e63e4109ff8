"""Gradient of a ternary linear layer for its input: the contract and the reference.

The straight-through estimator of ``y = ternary_linear(...)``: rounding, clamping and scales
count as the identity. With G the gradient of y::

    dx[m, k] = rne_dtype( sum_n  fl32(fl32(G[m, n]) * w_scale[n]) * t[n, k] )

==========  ===============  =======================  =====================================
argument    shape            dtype                    meaning
==========  ===============  =======================  =====================================
grad        (..., N)         float32, bfloat16,       G, any strides
                             float16
packed      (ceil(N/4), K)   uint8                    exchange layout, see ``pack_codes``
w_scale     (), (1,), (N,)   float32                  weight quantum, of the matrix or a row
dtype       --               --                       of dx: float32, bfloat16 or float16
dx          (..., K)         dtype                    contiguous
==========  ===============  =======================  =====================================

Codes are trusted: they are those that the forward pass has just made.

The sum is accumulated in float32 (the reference: float64, where a device has it) in an order
that depends on N only, so on one backend a result depends on neither the other rows nor the
number of threads. Between backends the order differs: each is within

    (N + 1) * 2^-24 * sum_n |term|

of the exact sum before its rounding to dtype, which for N = 1000 terms of random signs is some
1e-6 of the result.

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
    check_packed,
    check_same_device,
    check_weight_scale,
    wide_float,
)
from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.pack_codes import unpack_codes


def _check(grad: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype) -> None:
    check_dtype("grad", grad, *FLOATS)
    if grad.dim() < 1 or packed.dim() != 2:
        raise ShapeError(
            f"grad must be (..., N) and packed (ceil(N/4), K), got {tuple(grad.shape)} and "
            f"{tuple(packed.shape)}"
        )
    check_packed(packed, packed.shape[1], grad.shape[-1])
    check_weight_scale(w_scale, grad.shape[-1])
    check_float_dtype("dtype", dtype)
    check_same_device(grad=grad, packed=packed, w_scale=w_scale)


def _fake(grad: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty((*grad.shape[:-1], packed.shape[1]), dtype=dtype, device=grad.device)


@declare(
    "ternary_linear_grad_input(Tensor grad, Tensor packed, Tensor w_scale, ScalarType dtype) "
    "-> Tensor",
    check=_check,
    fake=_fake,
)
def ternary_linear_grad_input(
    grad: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of the layer's input. See the module docstring."""
    t = unpack_codes.impls["reference"](packed, grad.shape[-1])
    wide = wide_float(grad.device)
    dx: Tensor = (grad.to(torch.float32) * w_scale).to(wide) @ t.to(wide)
    return dx.to(torch.float32).to(dtype)
