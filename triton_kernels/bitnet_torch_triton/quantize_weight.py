"""Triton kernels of ``quantize_weight``. Contract: bitnet_torch/ops/quantize_weight.py.

A matrix takes three sweeps: peaks, fixed-point sums, codes. The programs of the first two write
what they found side by side, and each program behind them reads all of that: at most PARTS numbers,
of which a maximum and an integer sum are taken, so neither order nor number of programs matters,
and nothing has to be set to zero before. With a scale for each row a program owns whole rows, and
finds their scales in one launch. A sweep for which all programs had to meet midway would save
launches, but would wait for ever where a GPU runs only some of them at a time.

Where a weight is not finite the scale is NaN, and the host names the weight; it looks once, behind
the last launch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import quantize_weight as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.quantize_weight import MIN_SCALE, raise_if_not_finite
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import (
    INFINITY,
    exponent,
    magnitude,
    nearest_unsigned,
    pow2,
    widened,
)
from bitnet_torch_triton.rms_norm import elements, row_config, row_constants, rows_of

# Of a sweep over a matrix as one long row, and its programs at most.
SWEEP = KernelConfig(block_k=4096, num_warps=8)
PARTS = tl.constexpr(256)
# Rows and columns of codes.
CONFIG = KernelConfig(block_r=4, block_k=1024, num_warps=8)


@triton.jit
def _weight_peak_kernel(
    w_ptr,  # (size,) float
    peak_ptr,  # (programs,) int32: bits of the largest |w| of each
    size,
    share,  # weights of a program, a multiple of BLOCK
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * share
    peaks = tl.zeros((BLOCK,), dtype=tl.int32)
    for i in range(0, share, BLOCK):
        at = first + i + tl.arange(0, BLOCK)
        peaks = tl.maximum(peaks, magnitude(_weights(w_ptr, at, size)))
    tl.store(peak_ptr + tl.program_id(0), tl.max(peaks, axis=0))


@triton.jit
def _weight_sum_kernel(
    w_ptr,  # (size,) float
    peak_ptr,  # (parts,) int32
    total_ptr,  # (parts,) int64: sum of |w| * 2^p of each program
    size,
    share,
    parts,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * share
    factor = pow2(_fixed_point(_peak_of(peak_ptr, parts)))
    total = tl.zeros((BLOCK,), dtype=tl.int64)
    for i in range(0, share, BLOCK):
        at = first + i + tl.arange(0, BLOCK)
        total += _terms(_weights(w_ptr, at, size), factor)
    tl.store(total_ptr + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit
def _row_scale_kernel(
    w_ptr,  # (N, K) float
    scale_ptr,  # (N,) float32
    N,
    K,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows, n = rows_of(w_ptr, None, N, K, BLOCK_M)
    held = elements(rows, 0, None, BLOCK_K) if WHOLE else None
    end = BLOCK_K if WHOLE else K
    peaks = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for k in range(0, end, BLOCK_K):
        w = held if WHOLE else elements(rows, k, None, BLOCK_K)
        peaks = tl.maximum(peaks, magnitude(w))
    peak = tl.max(peaks, axis=1)
    factor = pow2(_fixed_point(peak))[:, None]
    totals = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int64)
    for k in range(0, end, BLOCK_K):
        w = held if WHOLE else elements(rows, k, None, BLOCK_K)
        totals += _terms(w, factor)
    tl.store(scale_ptr + n, _scale(peak, tl.sum(totals, axis=1), K), mask=n < N)


@triton.jit
def _ternarise_kernel(
    w_ptr,  # (N, K) float
    scale_ptr,  # (N,) float32, or () float32 to be written
    peak_ptr,  # (parts,) int32; None with a scale a row
    total_ptr,  # (parts,) int64; None with a scale a row
    t_ptr,  # (N, K) int8
    parts,
    N,
    K,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n, k = tile_of(K, BLOCK_R, BLOCK_K)
    if peak_ptr is None:
        scale = row_scales(scale_ptr, n, n < N)
    else:
        scale = matrix_scale(scale_ptr, peak_ptr, total_ptr, parts, N, K)
    at, inside = n[:, None] * K + k[None, :], (n < N)[:, None] & (k < K)[None, :]
    w = widened(tl.load(w_ptr + at, mask=inside, other=0.0))
    tl.store(t_ptr + at, ternary(w, scale).to(tl.int8), mask=inside)


@triton.jit
def tile_of(K, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return the rows and the columns of this program."""
    across = tl.cdiv(K, BLOCK_K)
    row = (tl.program_id(0) // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    return row, (tl.program_id(0) % across) * BLOCK_K + tl.arange(0, BLOCK_K)


@triton.jit
def row_scales(scale_ptr, n, present):
    """Return the scales of rows ``n`` as a column."""
    return tl.load(scale_ptr + n, mask=present, other=1.0)[:, None]


@triton.jit
def matrix_scale(scale_ptr, peak_ptr, total_ptr, parts, N, K):
    """Return the scale of a matrix; program 0 writes it."""
    i = tl.arange(0, PARTS)
    total = tl.sum(tl.load(total_ptr + i, mask=i < parts, other=0), axis=0)
    scale = _scale(_peak_of(peak_ptr, parts), total, tl.cast(N, tl.int64) * K)
    tl.store(scale_ptr, scale, mask=tl.program_id(0) == 0)
    return scale


@triton.jit
def ternary(w, scale):
    """Return the codes -1, 0, 1 of float32 weights as int32."""
    half = scale * 0.5
    return (w > half).to(tl.int32) - (w < -half).to(tl.int32)


@triton.jit
def _weights(w_ptr, at, size):
    return widened(tl.load(w_ptr + at, mask=at < size, other=0.0))


@triton.jit
def _terms(w, factor):
    """Return |w| * factor in whole numbers."""
    size = magnitude(w).to(tl.float32, bitcast=True)
    return nearest_unsigned(size * factor).to(tl.int64)


@triton.jit
def _peak_of(peak_ptr, parts):
    i = tl.arange(0, PARTS)
    return tl.max(tl.load(peak_ptr + i, mask=i < parts, other=0), axis=0)


@triton.jit
def _scale(peak, total, count):
    """Return the mean of |w| from a peak (bits) and a sum; NaN if a weight is not finite."""
    mean = tl.div_rn(total.to(tl.float32), tl.cast(count, tl.float32)) * pow2(-_fixed_point(peak))
    small = peak.to(tl.float32, bitcast=True) < 1e-5
    scale = tl.where(small, 1e-5, tl.maximum(mean, 1e-5))
    return tl.where(peak >= INFINITY, float("nan"), scale)


@triton.jit
def _fixed_point(peak):
    """Return p, so that |w| * 2^p has 30 bits before the point for the largest w."""
    a = tl.maximum(peak.to(tl.float32, bitcast=True), 1e-5)
    return 30 - exponent(a.to(tl.int32, bitcast=True))


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    w = w.contiguous()
    t = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    return t, with_scales(_ternarise_kernel, w, t, granularity)


def with_scales(kernel: Any, w: Tensor, codes: Tensor, granularity: str) -> Tensor:
    """Return the quantum of contiguous ``w``, () or (N,), and let ``kernel`` write its codes.

    Args:
        kernel: One with the arguments of ``_ternarise_kernel``.
        w: (N, K).
        codes: What it writes; its programs own CONFIG's tiles of these rows and columns.
        granularity: ``"matrix"`` or ``"row"``.

    Raises:
        QuantizationError: A weight is not finite.
    """
    per_row = granularity == "row"
    n, k = w.shape
    scale = torch.empty((n,) if per_row else (), dtype=torch.float32, device=w.device)
    if not w.numel():
        return scale.fill_(MIN_SCALE)
    peak, total = (None, None) if per_row else _sweeps(w)
    if per_row:
        config = row_config(n, k)
        programs, constants = triton.cdiv(n, config.block_m), row_constants(config, k)
        launch(_row_scale_kernel, programs, config, w, scale, n, k, **constants)
    programs = triton.cdiv(codes.shape[0], CONFIG.block_r) * triton.cdiv(k, CONFIG.block_k)
    sizes = (0 if peak is None else peak.numel(), n, k)
    blocks = {"BLOCK_R": CONFIG.block_r, "BLOCK_K": CONFIG.block_k}
    launch(kernel, programs, CONFIG, w, scale, peak, total, codes, *sizes, **blocks)
    raise_if_not_finite(w, scale)
    return scale


def _sweeps(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the peaks and the sums of the parts of a matrix."""
    size, block = w.numel(), SWEEP.block_k
    share = triton.cdiv(triton.cdiv(size, PARTS.value), block) * block
    parts = triton.cdiv(size, share)
    peak = torch.empty(parts, dtype=torch.int32, device=w.device)
    total = torch.empty(parts, dtype=torch.int64, device=w.device)
    launch(_weight_peak_kernel, parts, SWEEP, w, peak, size, share, BLOCK=block)
    launch(_weight_sum_kernel, parts, SWEEP, w, peak, total, size, share, parts, BLOCK=block)
    return peak, total
