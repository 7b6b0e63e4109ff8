"""Triton kernel of ``quantize_pack_weight``. Contract: bitnet_torch/ops/quantize_pack_weight.py.

The scales are those of quantize_weight.py; the codes go straight into bytes. As in
pack_codes.py, byte i of the flat matrix holds elements i, i + R*K, i + 2*R*K and i + 3*R*K.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import quantize_pack_weight as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import widened
from bitnet_torch_triton.quantize_weight import ternary, weight_scales

CONFIG = KernelConfig(block_k=1024)


@triton.jit
def _ternarise_pack_kernel(
    w_ptr,  # (N, K) float
    scale_ptr,  # () or (N,) float32
    packed_ptr,  # (R, K) uint8
    weight_count,  # N * K
    byte_count,  # R * K
    K,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    packed = tl.zeros((BLOCK,), dtype=tl.int32)
    for j in tl.static_range(4):
        at = i + j * byte_count
        # Rows past N are rows of zeros, whose code is 1.
        inside = (i < byte_count) & (at < weight_count)
        w = widened(tl.load(w_ptr + at, mask=inside, other=0.0))
        if PER_ROW:
            scale = tl.load(scale_ptr + at // K, mask=inside, other=1.0)
        else:
            scale = tl.load(scale_ptr)
        packed |= (ternary(w, scale) + 1) << (2 * j)
    tl.store(packed_ptr + i, packed.to(tl.uint8), mask=i < byte_count)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def quantize_pack(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    """Ternarise and pack."""
    w = w.contiguous()
    n, k = w.shape
    scale = weight_scales(w, granularity)
    packed = torch.empty((-(-n // 4), k), dtype=torch.uint8, device=w.device)
    programs = triton.cdiv(packed.numel(), CONFIG.block_k)
    sizes = (w.numel(), packed.numel(), k)
    constants = {"PER_ROW": granularity == "row", "BLOCK": CONFIG.block_k}
    launch(_ternarise_pack_kernel, programs, CONFIG, w, scale, packed, *sizes, **constants)
    return packed, scale
