"""Triton kernels of ``quantize_weight``. Contract: bitnet_torch/ops/quantize_weight.py.

Three passes over the weights, seen as S scales of C weights each (the matrix: 1 by N*K):
the peak of each scale, the fixed-point sum of each, the codes. Peaks and sums meet in
integer atomics, so the order of the programs cannot change them. Between the first two the
host looks at the peaks once, because a weight that is not finite has to be named.
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
def _weight_scale_kernel(
    peak_ptr,  # (S,) int32
    total_ptr,  # (S,) int64
    scale_ptr,  # (S,) float32
    S,
    C,
    BLOCK: tl.constexpr,
):
    s = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    peak = tl.load(peak_ptr + s, mask=s < S, other=0)
    total = tl.load(total_ptr + s, mask=s < S, other=0).to(tl.float32)
    mean = tl.div_rn(total, tl.cast(C, tl.float32)) * pow2(-_fixed_point(peak))
    small = peak.to(tl.float32, bitcast=True) < 1e-5
    tl.store(scale_ptr + s, tl.where(small, 1e-5, tl.maximum(mean, 1e-5)), mask=s < S)


@triton.jit
def _ternarise_kernel(
    w_ptr,  # (S, C) float
    scale_ptr,  # (S,) float32
    t_ptr,  # (S, C) int8
    C,
    BLOCK: tl.constexpr,
):
    s, at, inside = _block(C, BLOCK)
    w = widened(tl.load(w_ptr + at, mask=inside, other=0.0))
    tl.store(t_ptr + at, ternary(w, tl.load(scale_ptr + s)).to(tl.int8), mask=inside)


@triton.jit
def ternary(w, scale):
    """Return the codes -1, 0, 1 of float32 weights as int32."""
    half = scale * 0.5
    return (w > half).to(tl.int32) - (w < -half).to(tl.int32)


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


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    w = w.contiguous()
    scale = weight_scales(w, granularity)
    t = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    if w.numel():
        columns = w.numel() // scale.numel()
        programs = scale.numel() * triton.cdiv(columns, CONFIG.block_k)
        launch(_ternarise_kernel, programs, CONFIG, w, scale, t, columns, BLOCK=CONFIG.block_k)
    return t, scale


def weight_scales(w: Tensor, granularity: str) -> Tensor:
    """Return the quantum of contiguous ``w``, () or (N,).

    Raises:
        QuantizationError: A weight is not finite.
    """
    scale = torch.full(
        w.shape[:1] if granularity == "row" else (),
        MIN_SCALE,
        dtype=torch.float32,
        device=w.device,
    )
    if not w.numel():
        return scale
    peak = torch.zeros_like(scale, dtype=torch.int32)
    total = torch.zeros_like(scale, dtype=torch.int64)
    scales = scale.numel()
    columns = w.numel() // scales
    programs = scales * triton.cdiv(columns, CONFIG.block_k)
    block = {"BLOCK": CONFIG.block_k}
    launch(_weight_peak_kernel, programs, CONFIG, w, peak, columns, **block)
    raise_if_not_finite(w, peak.view(torch.float32))
    launch(_weight_sum_kernel, programs, CONFIG, w, peak, total, columns, **block)
    blocks = triton.cdiv(scales, CONFIG.block_k)
    launch(_weight_scale_kernel, blocks, CONFIG, peak, total, scale, scales, columns, **block)
    return scale
