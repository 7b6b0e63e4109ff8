"""Triton kernel of ``rope_kv_write``. Contract: bitnet_torch/ops/rope_kv_write.py.

A program owns BLOCK_M tokens of one head of q, k or v, and each head as a whole, because the
scale of an int8 cache needs all of it. A slot that lies outside the cache is not written: the
launcher would have to wait for the device to learn of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import rope_kv_write as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import magnitude, nearest, rounded, widened
from bitnet_torch_triton.quantize_rows import row_scales

# Elements of a program, and of a lane: a load of 16 bytes where they are 16 bits wide.
TILE, EACH = 1024, 8


def config_for(tokens: int, half: int) -> KernelConfig:
    """Return the launch configuration for so many tokens and heads of ``2 * half`` elements.

    A single token has a warp for each head, which then needs no barrier.
    """
    block_k = triton.next_power_of_2(max(half, 1))
    block_m = max(1, min(16, triton.next_power_of_2(tokens), TILE // block_k))
    warps = max(1, min(4, block_m * block_k // (32 * EACH)))
    return KernelConfig(block_m=block_m, block_k=block_k, num_warps=warps)


@triton.jit
def _rope_kv_write_kernel(
    q_ptr,  # (B, heads, T, D) float
    k_ptr,  # (B, kv_heads, T, D), q's
    v_ptr,  # (B, kv_heads, T, D), q's
    cos_ptr,  # (B or 1, T, D/2) float32
    sin_ptr,  # (B or 1, T, D/2) float32
    keys_ptr,  # (B, kv_heads, L, D), q's or int8
    values_ptr,  # (B, kv_heads, L, D), keys'
    key_scale_ptr,  # (B, kv_heads, L) float32; None with a float cache
    value_scale_ptr,  # (B, kv_heads, L) float32; None with a float cache
    start_ptr,  # () int64
    y_ptr,  # (B, heads, T, D), q's
    heads,
    kv_heads,
    T,
    L,
    H,  # D / 2
    table_b,  # stride of the tables' sequences: 0 if there is one for all
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks = tl.cdiv(T, BLOCK_M)
    b = (tl.program_id(0) // blocks // (heads + 2 * kv_heads)).to(tl.int64)
    head = tl.program_id(0) // blocks % (heads + 2 * kv_heads)
    t = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = tl.load(start_ptr) + t
    writes = (t < T) & (slot >= 0) & (slot < L)
    j = tl.arange(0, BLOCK_K)[None, :]
    inside = (t < T)[:, None] & (j < H)
    at = (t.to(tl.int64) * (2 * H))[:, None] + j
    table = b * table_b + (t.to(tl.int64) * H)[:, None] + j
    if head < heads:
        base = (b * heads + head) * T * 2 * H
        y1, y2 = _turned(q_ptr + base + at, cos_ptr + table, sin_ptr + table, H, inside)
        tl.store(y_ptr + base + at, y1, mask=inside)
        tl.store(y_ptr + base + at + H, y2, mask=inside)
    elif head < heads + kv_heads:
        row = b * kv_heads + head - heads
        y1, y2 = _turned(k_ptr + row * T * 2 * H + at, cos_ptr + table, sin_ptr + table, H, inside)
        _put(keys_ptr, key_scale_ptr, y1, y2, row * L + slot, writes, H, j)
    else:
        row = b * kv_heads + head - heads - kv_heads
        x_ptr = v_ptr + row * T * 2 * H + at
        y1, y2 = _halves(x_ptr, H, inside)
        _put(values_ptr, value_scale_ptr, y1, y2, row * L + slot, writes, H, j)


@triton.jit
def _halves(x_ptr, H, inside):
    """Return both halves of some heads as they are."""
    return tl.load(x_ptr, mask=inside, other=0.0), tl.load(x_ptr + H, mask=inside, other=0.0)


@triton.jit
def _turned(x_ptr, cos_ptr, sin_ptr, H, inside):
    """Return both halves of some heads, rotated and rounded to x's dtype."""
    x1, x2 = _halves(x_ptr, H, inside)
    x1, x2 = widened(x1), widened(x2)
    cos = tl.load(cos_ptr, mask=inside, other=0.0)
    sin = tl.load(sin_ptr, mask=inside, other=0.0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    return rounded(x1 * cos - x2 * sin, dtype), rounded(x2 * cos + x1 * sin, dtype)


@triton.jit
def _put(cache_ptr, scale_ptr, y1, y2, slot, writes, H, j):
    """Write the vectors (y1, y2) to their slots, quantised if the cache has scales."""
    at = (slot * (2 * H))[:, None] + j
    inside = writes[:, None] & (j < H)
    if scale_ptr is not None:
        y1, y2 = widened(y1), widened(y2)
        bad, inv, scale = row_scales(tl.max(tl.maximum(magnitude(y1), magnitude(y2)), axis=1))
        tl.store(scale_ptr + slot, scale, mask=writes)
        y1 = nearest(tl.where(bad[:, None], 0.0, y1) * inv[:, None]).to(tl.int8)
        y2 = nearest(tl.where(bad[:, None], 0.0, y2) * inv[:, None]).to(tl.int8)
    tl.store(cache_ptr + at, y1, mask=inside)
    tl.store(cache_ptr + at + H, y2, mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
) -> Tensor:
    q, k, v, cos, sin = (x.contiguous() for x in (q, k, v, cos, sin))
    cache = (keys, values, key_scale, value_scale)
    # A layer's part of a cache is dense. Any other is written as a copy and copied back.
    dense = tuple(None if c is None else c.contiguous() for c in cache)
    batch, heads, tokens, d = q.shape
    kv_heads = k.shape[1]
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    config = config_for(tokens, d // 2)
    launch(
        _rope_kv_write_kernel,
        batch * (heads + 2 * kv_heads) * triton.cdiv(tokens, config.block_m),
        config,
        *(q, k, v, cos, sin, *dense, start, y),
        *(heads, kv_heads, tokens, keys.shape[2], d // 2),
        0 if cos.shape[0] == 1 else tokens * (d // 2),
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
    )
    for original, copy in zip(cache, dense, strict=True):
        if original is not None and copy is not None and copy is not original:
            original.copy_(copy)
    return y
