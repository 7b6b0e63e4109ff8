"""Triton kernel of ``quantize_head``. Contract: bitnet_torch/ops/quantize_head.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import quantize_head as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import INFINITY, magnitude, nearest, widened

CONFIG = KernelConfig(block_m=8, block_k=256)


@triton.jit
def _quantize_head_kernel(
    w_ptr,  # (N, K) float
    h_ptr,  # (N, K) int8
    scale_ptr,  # (N,) float32
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, present = (n * K)[:, None], (n < N)[:, None]
    column = tl.arange(0, BLOCK_K)[None, :]
    peaks = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for k in range(0, K, BLOCK_K):
        inside = present & (k + column < K)
        w = widened(tl.load(w_ptr + row + k + column, mask=inside, other=0.0))
        peaks = tl.maximum(peaks, magnitude(w))
    peak = tl.max(peaks, axis=1)
    bad = peak >= INFINITY
    quotient = tl.div_rn(tl.where(bad, 0, peak).to(tl.float32, bitcast=True), 127.0)
    scale = tl.maximum(quotient, 1e-12)
    tl.store(scale_ptr + n, tl.where(bad, float("nan"), scale), mask=n < N)
    for k in range(0, K, BLOCK_K):
        inside = present & (k + column < K)
        w = widened(tl.load(w_ptr + row + k + column, mask=inside, other=0.0))
        # |w / scale| exceeds 127 by two roundings at most, so its integer needs no clamp.
        h = nearest(tl.div_rn(tl.where(bad[:, None], 0.0, w), _wide(scale, w)))
        tl.store(h_ptr + row + k + column, h.to(tl.int8), mask=inside)


@triton.jit
def _wide(scale, w):
    return tl.broadcast_to(scale[:, None], w.shape)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(weight: Tensor) -> tuple[Tensor, Tensor]:
    n, k = weight.shape
    h = torch.empty((n, k), dtype=torch.int8, device=weight.device)
    h_scale = torch.empty(n, dtype=torch.float32, device=weight.device)
    launch(
        _quantize_head_kernel,
        triton.cdiv(n, CONFIG.block_m),
        CONFIG,
        weight.contiguous(),
        h,
        h_scale,
        n,
        k,
        BLOCK_M=CONFIG.block_m,
        BLOCK_K=CONFIG.block_k,
    )
    return h, h_scale
