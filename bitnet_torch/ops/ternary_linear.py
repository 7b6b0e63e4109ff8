"""Linear layer on quantised activations and packed ternary weights: contract and reference.

Maths (``fl32`` rounds once to float32, ``rne_dtype`` once to the output dtype)::

    acc[m, n] = sum_k  x_q[m, k] * t[n, k]            exact, int32
    s         = fl32(x_scale[m] * w_scale[n])
    y[m, n]   = rne_dtype(fl32(fl32(acc) * s))
    with bias:  y = rne_dtype(fl32(fl32(y) + fl32(bias[n])))

The sum is over integers, so no order of threads, blocks or devices can change it, and the
float steps are written out, so every backend returns the same bits. ``fl32(acc)`` is exact
while K <= 131072 (128 * 131072 = 2^24); longer rows are refused. Nothing is fused into an
FMA.

==========  ===============  ========  =============================================
argument    shape            dtype     meaning
==========  ===============  ========  =============================================
x_q         (..., K)         int8      activation codes in [-128, 127], any strides
x_scale     (...)            float32   activation quantum per token
packed      (ceil(N/4), K)   uint8     exchange layout, see ``pack_codes``
w_scale     (), (1,), (N,)   float32   weight quantum of the matrix, or of each row
N           --               int       out_features
dtype       --               --        float32, bfloat16 or float16
bias        (N,)             float     optional, added inside as above
y           (..., N)         dtype     contiguous
==========  ===============  ========  =============================================

Source: Ma et al. 2024 (arXiv:2402.17764), section 2; the rounding order is this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops._checks import (
    check_bias,
    check_float_dtype,
    check_packed,
    check_quantised,
    check_same_device,
    check_weight_scale,
    wide_float,
)
from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.pack_codes import unpack_codes


def _check(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> None:
    check_quantised(x_q, x_scale)
    check_packed(packed, x_q.shape[-1], N)
    check_weight_scale(w_scale, N)
    check_float_dtype("dtype", dtype)
    check_bias(bias, N)
    check_same_device(x_q=x_q, x_scale=x_scale, packed=packed, w_scale=w_scale, bias=bias)


def _fake(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    return torch.empty((*x_q.shape[:-1], N), dtype=dtype, device=x_q.device)


@declare(
    "ternary_linear(Tensor x_q, Tensor x_scale, Tensor packed, Tensor w_scale, int N, "
    "ScalarType dtype, Tensor? bias=None) -> Tensor",
    check=_check,
    fake=_fake,
)
def ternary_linear(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute ``x_q @ t.T`` and scale it back to real units. See the module docstring."""
    t = unpack_codes.impls["reference"](packed, N)
    # Every partial sum is an integer of at most 2^24, which any carrier holds exactly. Through
    # int32, because a float sum of zeros may be -0.0.
    carrier = wide_float(x_q.device)
    acc = (x_q.to(carrier) @ t.to(carrier).T).to(torch.int32)
    y: Tensor = (acc.to(torch.float32) * (x_scale[..., None] * w_scale)).to(dtype)
    if bias is not None:
        y = (y.to(torch.float32) + bias.to(torch.float32)).to(dtype)
    return y
