"""The kernel of all ops that end in int8 rows: it gates and normalises on the way, or does not.

Contracts: bitnet_torch/ops/quantize_activation.py, rms_norm_quantize.py and
glu_norm_quantize.py. A program owns BLOCK_M rows, walked over as in rms_norm.py: read once and held
where they fit the registers, else read anew for each pass (the norm's peak and sum, the peak, the
codes), computing again what stands before a pass. So no intermediate row goes to memory, and a row
may have any length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch_triton._launch import launch
from bitnet_torch_triton.number import TWO_TO_126, magnitude, nearest
from bitnet_torch_triton.rms_norm import (
    elements,
    inverse_rms,
    normalised,
    places,
    row_config,
    row_constants,
    rows_of,
)


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
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows, m = rows_of(x_ptr, u_ptr, M, K, BLOCK_M)
    held = elements(rows, 0, ACTIVATION, BLOCK_K) if WHOLE else None
    r = None
    if weight_ptr is not None:
        r = inverse_rms(rows, held, eps, ACTIVATION, BLOCK_M, BLOCK_K)
        if WHOLE:
            held = _normed(held, rows, 0, r, weight_ptr, BLOCK_K)
    end = BLOCK_K if WHOLE else K
    peaks = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for k in range(0, end, BLOCK_K):
        x = held if WHOLE else _piece(rows, k, r, weight_ptr, ACTIVATION, BLOCK_K)
        peaks = tl.maximum(peaks, magnitude(x))
    bad, inv, scale = row_scales(tl.max(peaks, axis=1))
    tl.store(scale_ptr + m, scale, mask=m < M)
    for k in range(0, end, BLOCK_K):
        column, inside = places(rows, k, BLOCK_K)
        x = held if WHOLE else _piece(rows, k, r, weight_ptr, ACTIVATION, BLOCK_K)
        # |x * inv| exceeds 127 by two roundings at most, so its integer needs no clamp.
        q = nearest(tl.where(bad[:, None], 0.0, x) * inv[:, None])
        tl.store(q_ptr + rows[2] + column, q.to(tl.int8), mask=inside)


@triton.jit
def _piece(rows, k, r, weight_ptr, ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return what is quantised of columns ``k`` and on."""
    x = elements(rows, k, ACTIVATION, BLOCK_K)
    return x if weight_ptr is None else _normed(x, rows, k, r, weight_ptr, BLOCK_K)


@triton.jit
def _normed(x, rows, k, r, weight_ptr, BLOCK_K: tl.constexpr):
    column, inside = places(rows, k, BLOCK_K)
    return normalised(x, r, weight_ptr, column, inside, rows[0].dtype.element_ty)


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
        **row_constants(config, k),
    )
    return x_q, x_scale
