"""Triton kernel of ``rms_norm``. Contract: bitnet_torch/ops/rms_norm.py.

A program owns BLOCK_M rows and reads them three times: for the peak, for the fixed-point sum
of squares, for the result. The sum is over integers, so it may be split in any way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import rms_norm as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.glu import load_row
from bitnet_torch_triton.number import (
    TWO_TO_63,
    exponent,
    magnitude,
    nearest,
    pow2,
    rounded,
    widened,
)

# The longest row a configuration is for, and the configuration; the last serves the rest.
CONFIGS = (
    (256, KernelConfig(block_m=16, block_k=256, num_warps=8)),
    (None, KernelConfig(block_m=2, block_k=1024, num_warps=8)),
)
SINGLE = KernelConfig(block_k=1024)


def row_config(m: int, k: int) -> KernelConfig:
    """Return how to run a kernel over m rows of k elements: short rows share a program."""
    if m == 1:
        return SINGLE
    return next(config for longest, config in CONFIGS if longest is None or k <= longest)


@triton.jit
def row_peaks(
    x_ptr,
    u_ptr,
    row,
    present,
    K,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the largest magnitude of each row, as int32 bits."""
    column = tl.arange(0, BLOCK_K)[None, :]
    peaks = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for k in range(0, K, BLOCK_K):
        inside = present & (k + column < K)
        x = load_row(x_ptr, u_ptr, row + k + column, inside, ACTIVATION)
        peaks = tl.maximum(peaks, magnitude(x))
    return tl.max(peaks, axis=1)


@triton.jit
def inverse_rms(
    x_ptr,
    u_ptr,
    row,
    present,
    K,
    eps,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return r of each row as a column: NaN if the row cannot be normalised."""
    peak = row_peaks(x_ptr, u_ptr, row, present, K, ACTIVATION, BLOCK_M, BLOCK_K)
    bad = peak >= TWO_TO_63
    e = tl.maximum(exponent(tl.where(bad, 0, peak)), -40)
    column = tl.arange(0, BLOCK_K)[None, :]
    squares = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int64)
    for k in range(0, K, BLOCK_K):
        inside = present & (k + column < K)
        x = load_row(x_ptr, u_ptr, row + k + column, inside, ACTIVATION)
        u = nearest(tl.where(bad[:, None], 0.0, x) * pow2(22 - e)[:, None]).to(tl.int64)
        squares += u * u
    total = tl.sum(squares, axis=1).to(tl.float32)
    ms = tl.div_rn(total, tl.cast(K, tl.float32)) * pow2(2 * (e - 22))
    r = tl.div_rn(1.0, tl.sqrt_rn(ms + eps))
    return tl.where(bad, float("nan"), r)[:, None]


@triton.jit
def normalised(x, r, weight_ptr, column, inside, dtype: tl.constexpr):
    """Return float32 ``x``, normalised and rounded to ``dtype``, as float32."""
    weight = widened(tl.load(weight_ptr + column, mask=inside, other=0.0))
    return widened(rounded(weight * widened(rounded(x * r, dtype)), dtype))


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # (M, K) float
    weight_ptr,  # (K,) float
    y_ptr,  # (M, K), x's
    M,
    K,
    eps,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = (tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    row, present = m * K, m < M
    r = inverse_rms(x_ptr, None, row, present, K, eps, None, BLOCK_M, BLOCK_K)
    for k in range(0, K, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)[None, :]
        inside = present & (column < K)
        x = load_row(x_ptr, None, row + column, inside, None)
        y = normalised(x, r, weight_ptr, column, inside, y_ptr.dtype.element_ty)
        # A rounding of what is rounded: exact.
        tl.store(y_ptr + row + column, rounded(y, y_ptr.dtype.element_ty), mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    k = x.shape[-1]
    m = x.numel() // k
    config = row_config(m, k)
    blocks = {"BLOCK_M": config.block_m, "BLOCK_K": config.block_k}
    programs = triton.cdiv(m, config.block_m)
    launch(_rms_norm_kernel, programs, config, x, weight, y, m, k, eps, **blocks)
    return y
