"""Triton kernels of ``quantize_weight``. Contract: bitnet_torch/ops/quantize_weight.py.

Three passes over the weights, seen as S scales of C weights each (the matrix: 1 by N*K):
the peak of each scale, the fixed-point sum of each, the codes. Peaks and sums meet in
integer atomics, so the order of the programs cannot change them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import quantize_weight as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.quantize_weight import MIN_SCALE, raise_if_not_finite
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import exponent, magnitude, nearest_unsigned, pow2, widened

CONFIG = KernelConfig(block_k=2048)


@triton.jit
def _weight_peak_kernel(
    w_ptr,  # (S, C) float
    peak_ptr,  # (S,) int32: bits of the largest |w|; starts at 0
    C,
    BLOCK: tl.constexpr,
):
    s, at, inside = _block(C, BLOCK)
    w = widened(tl.load(w_ptr + at, mask=inside, other=0.0))
    tl.atomic_max(peak_ptr + s, tl.max(magnitude(w), axis=0))


@triton.jit
def _weight_sum_kernel(
    w_ptr,  # (S, C) float
    peak_ptr,  # (S,) int32
    total_ptr,  # (S,) int64: sum of |w| * 2^p; starts at 0
    C,
    BLOCK: tl.constexpr,
):
    s, at, inside = _block(C, BLOCK)
    size = magnitude(widened(tl.load(w_ptr + at, mask=inside, other=0.0)))
    p = _fixed_point(tl.load(peak_ptr + s))
    terms = nearest_unsigned(size.to(tl.float32, bitcast=True) * pow2(p))
    tl.atomic_add(total_ptr + s, tl.sum(terms.to(tl.int64), axis=0))


@triton.jit
def _ternarise_kernel(
    w_ptr,  # (S, C) float
    peak_ptr,  # (S,) int32
    total_ptr,  # (S,) int64
    t_ptr,  # (S, C) int8
    scale_ptr,  # (S,) float32
    C,
    BLOCK: tl.constexpr,
):
    s, at, inside = _block(C, BLOCK)
    scale = _mean(tl.load(peak_ptr + s), tl.load(total_ptr + s), C)
    # Every program of a scale stores the same.
    tl.store(scale_ptr + s, scale)
    w = widened(tl.load(w_ptr + at, mask=inside, other=0.0))
    half = scale * 0.5
    t = (w > half).to(tl.int8) - (w < -half).to(tl.int8)
    tl.store(t_ptr + at, t, mask=inside)


@triton.jit
def _block(C, BLOCK: tl.constexpr):
    """Return this program's scale, the offsets of its weights, and which of them exist."""
    per_scale = tl.cdiv(C, BLOCK)
    s = (tl.program_id(0) // per_scale).to(tl.int64)
    c = (tl.program_id(0) % per_scale).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return s, s * C + c, c < C


@triton.jit
def _fixed_point(peak):
    """Return p, so that |w| * 2^p has 30 bits before the point for the largest w."""
    a = tl.maximum(peak.to(tl.float32, bitcast=True), 1e-5)
    return 30 - exponent(a.to(tl.int32, bitcast=True))


@triton.jit
def _mean(peak, total, C):
    """Return w_scale from the bits of the peak and the fixed-point sum of C magnitudes."""
    mean = tl.div_rn(total.to(tl.float32), tl.cast(C, tl.float32)) * pow2(-_fixed_point(peak))
    return tl.where(peak.to(tl.float32, bitcast=True) < 1e-5, 1e-5, tl.maximum(mean, 1e-5))


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    w = w.contiguous()
    shape = w.shape[:1] if granularity == "row" else ()
    scale = torch.full(shape, MIN_SCALE, device=w.device)
    t = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    if not w.numel():
        return t, scale
    peak = torch.zeros(shape, dtype=torch.int32, device=w.device)
    total = torch.zeros(shape, dtype=torch.int64, device=w.device)
    columns = w.numel() // scale.numel()
    programs = scale.numel() * triton.cdiv(columns, CONFIG.block_k)
    block = {"BLOCK": CONFIG.block_k}
    launch(_weight_peak_kernel, programs, CONFIG, w, peak, columns, **block)
    raise_if_not_finite(w, peak.view(torch.float32))
    launch(_weight_sum_kernel, programs, CONFIG, w, peak, total, columns, **block)
    launch(_ternarise_kernel, programs, CONFIG, w, peak, total, t, scale, columns, **block)
    return t, scale
