"""Triton kernel of ``quantize_pack_weight``. Contract: bitnet_torch/ops/quantize_pack_weight.py.

The scales are those of quantize_weight.py; the codes go straight into bytes: row r of these holds
rows r, r + R, r + 2 R and r + 3 R of the matrix.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import quantize_pack_weight as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.number import widened
from bitnet_torch_triton.quantize_weight import (
    matrix_scale,
    row_scales,
    ternary,
    tile_of,
    with_scales,
)


@triton.jit
def _ternarise_pack_kernel(
    w_ptr,  # (N, K) float
    scale_ptr,  # (N,) float32, or () float32 to be written
    peak_ptr,  # (parts,) int32; None with a scale a row
    total_ptr,  # (parts,) int64; None with a scale a row
    packed_ptr,  # (R, K) uint8
    parts,
    N,
    K,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    R = tl.cdiv(N, 4)
    r, k = tile_of(K, BLOCK_R, BLOCK_K)
    inside = (r < R)[:, None] & (k < K)[None, :]
    scale = None
    if peak_ptr is not None:
        scale = matrix_scale(scale_ptr, peak_ptr, total_ptr, parts, N, K)
    packed = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.int32)
    for j in tl.static_range(4):
        n = r + j * R
        # Rows past N are rows of zeros, whose code is 1.
        present = (r < R) & (n < N)
        own = row_scales(scale_ptr, n, present) if scale is None else scale
        at = n[:, None] * K + k[None, :]
        w = widened(tl.load(w_ptr + at, mask=inside & present[:, None], other=0.0))
        packed |= (ternary(w, own) + 1) << (2 * j)
    tl.store(packed_ptr + r[:, None] * K + k[None, :], packed.to(tl.uint8), mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def quantize_pack(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    """Ternarise and pack."""
    w = w.contiguous()
    n, k = w.shape
    packed = torch.empty((-(-n // 4), k), dtype=torch.uint8, device=w.device)
    return packed, with_scales(_ternarise_pack_kernel, w, packed, granularity)
