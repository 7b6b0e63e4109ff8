"""The kernel of all ops that end in int8 rows: it gates and normalises on the way, or does not.

Contracts: bitnet_torch/ops/quantize_activation.py, rms_norm_quantize.py and
glu_norm_quantize.py. A program owns BLOCK_M rows and reads them anew for each of its passes
(the norm's peak and sum, the peak, the codes), computing again what stands before a pass; so
no intermediate row goes to memory, and a row may have any length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch_triton._launch import launch
from bitnet_torch_triton.glu import load_row
from bitnet_torch_triton.number import TWO_TO_126, magnitude, nearest
from bitnet_torch_triton.rms_norm import inverse_rms, normalised, row_config


@triton.jit
def _quantize_rows_kernel(
    x_ptr,  # (M, K) float
    u_ptr,  # (M, K), x's; None without an activation
    weight_ptr,  # (K,) float; None without a norm
    q_ptr,  # (M, K) int8
    scale_ptr,  # (M,) float32
    M,
    K,
    eps,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, present = (m * K)[:, None], (m < M)[:, None]
    r = 1.0
    if weight_ptr is not None:
        r = inverse_rms(x_ptr, u_ptr, row, present, K, eps, ACTIVATION, BLOCK_M, BLOCK_K)
    peaks = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for k in range(0, K, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)[None, :]
        inside = present & (column < K)
        x = _load(x_ptr, u_ptr, weight_ptr, r, row, column, inside, ACTIVATION)
        peaks = tl.maximum(peaks, magnitude(x))
    bad, inv, scale = row_scales(tl.max(peaks, axis=1))
    tl.store(scale_ptr + m, scale, mask=m < M)
    for k in range(0, K, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)[None, :]
        inside = present & (column < K)
        x = _load(x_ptr, u_ptr, weight_ptr, r, row, column, inside, ACTIVATION)
        # |x * inv| exceeds 127 by two roundings at most, so its integer needs no clamp.
        q = nearest(tl.where(bad[:, None], 0.0, x) * inv[:, None])
        tl.store(q_ptr + row + column, q.to(tl.int8), mask=inside)


@triton.jit
def _load(x_ptr, u_ptr, weight_ptr, r, row, column, inside, ACTIVATION: tl.constexpr):
    x = load_row(x_ptr, u_ptr, row + column, inside, ACTIVATION)
    if weight_ptr is not None:
        x = normalised(x, r, weight_ptr, column, inside, x_ptr.dtype.element_ty)
    return x


@triton.jit
def row_scales(peak):
    """Return (bad, inv, x_scale) of a row whose peak has these bits."""
    bad = peak > TWO_TO_126
    amax = tl.maximum(tl.where(bad, 0, peak).to(tl.float32, bitcast=True), 1e-5)
    inv = tl.div_rn(1.0, amax) * 127.0
    return bad, inv, tl.where(bad, float("nan"), tl.div_rn(amax, 127.0))


def quantize_rows(
    x: Tensor,
    u: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 0.0,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise the rows of ``x`` (..., K), gated with ``u`` and normalised where that is given."""
    x = x.contiguous()
    x_q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    x_scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    m, k = x_scale.numel(), x.shape[-1]
    config = row_config(m, k)
    launch(
        _quantize_rows_kernel,
        triton.cdiv(m, config.block_m),
        config,
        x,
        None if u is None else u.contiguous(),
        None if weight is None else weight.contiguous(),
        x_q,
        x_scale,
        m,
        k,
        eps,
        ACTIVATION=activation,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
    )
    return x_q, x_scale
