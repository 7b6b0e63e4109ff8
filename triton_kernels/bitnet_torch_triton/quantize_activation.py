"""Triton kernel of ``quantize_activation``. Contract: bitnet_torch/ops/quantize_activation.py.

One program owns one row and reads it twice: for the peak, then for the codes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import quantize_activation as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import TWO_TO_126, magnitude, nearest, widened

CONFIG = KernelConfig(block_k=2048)


@triton.jit
def row_peak(x_ptr, K, BLOCK: tl.constexpr):
    """Return the largest magnitude of a row, as int32 bits."""
    column = tl.arange(0, BLOCK)
    peak = tl.zeros((BLOCK,), dtype=tl.int32)
    for k in range(0, K, BLOCK):
        x = tl.load(x_ptr + k + column, mask=k + column < K, other=0.0)
        peak = tl.maximum(peak, magnitude(widened(x)))
    return tl.max(peak, axis=0)


@triton.jit
def scales(peak):
    """Return (bad, inv, x_scale) of a row whose peak has these bits."""
    bad = peak > TWO_TO_126
    amax = tl.maximum(tl.where(bad, 0, peak).to(tl.float32, bitcast=True), 1e-5)
    inv = tl.div_rn(1.0, amax) * 127.0
    return bad, inv, tl.where(bad, float("nan"), tl.div_rn(amax, 127.0))


@triton.jit
def _quantize_activation_kernel(
    x_ptr,  # (M, K) float
    q_ptr,  # (M, K) int8
    scale_ptr,  # (M,) float32
    K,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64)
    peak = row_peak(x_ptr + m * K, K, BLOCK)
    bad, inv, scale = scales(peak)
    tl.store(scale_ptr + m, scale)
    column = tl.arange(0, BLOCK)
    for k in range(0, K, BLOCK):
        inside = k + column < K
        x = widened(tl.load(x_ptr + m * K + k + column, mask=inside, other=0.0))
        # |x * inv| exceeds 127 by two roundings at most, so its integer needs no clamp.
        q = nearest(tl.where(bad, 0.0, x) * inv)
        tl.store(q_ptr + m * K + k + column, q.to(tl.int8), mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def launch_quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel on ``x`` (..., K)."""
    x = x.contiguous()
    x_q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    x_scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    launch(
        _quantize_activation_kernel,
        x_scale.numel(),
        CONFIG,
        x,
        x_q,
        x_scale,
        x.shape[-1],
        BLOCK=CONFIG.block_k,
    )
    return x_q, x_scale
