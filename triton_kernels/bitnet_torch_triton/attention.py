"""Triton kernel of ``attention``. Contract: bitnet_torch/ops/attention.py.

A program owns BLOCK_M rows (a head of a token each) that share a key head, and walks over their
keys in blocks of BLOCK_N, counted from the sequence's first key, with a running maximum. The same
blocks serve one query and many, so within this backend bits depend on neither batch, padding nor
chunks. Sums are in float32 whatever the dtype. Heads up to 256 wide keep to registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import attention as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.attention import score_factor
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import INFINITY, exp, magnitude, rounded, widened

# Elements of a head that a product takes at a time: its operands lie in registers whole.
PIECE = tl.constexpr(32)


def config_for(d: int) -> KernelConfig:
    """Return the launch configuration for heads of ``d`` elements."""
    block_k = max(16, triton.next_power_of_2(max(d, 1)))
    return KernelConfig(block_m=16, block_n=16, block_k=block_k, num_warps=8)


@triton.jit
def _attention_kernel(
    q_ptr,  # (B, heads, T, D) float
    keys_ptr,  # (B, kv_heads, L, D), q's or int8
    values_ptr,  # (B, kv_heads, L, D), keys'
    key_scale_ptr,  # (B, kv_heads, L) float32; None with a float cache
    value_scale_ptr,  # (B, kv_heads, L) float32; None with a float cache
    start_ptr,  # () int64
    first_ptr,  # (B,) int64, or None
    out_ptr,  # (B, T, heads, D), q's
    heads,
    group,  # heads that share a key head
    T,
    L,
    D,
    factor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks = tl.cdiv(T * group, BLOCK_M)
    kv_row = (tl.program_id(0) // blocks).to(tl.int64)  # sequence and key head
    b, kv_head = kv_row // (heads // group), kv_row % (heads // group)
    row = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    t, head = row // group, kv_head * group + row % group
    d = tl.arange(0, BLOCK_K)
    present = (t < T)[:, None] & (d < D)[None, :]
    start = tl.load(start_ptr)
    at = start + t
    first = tl.minimum(tl.maximum(_first(first_ptr, b), 0), L).to(tl.int32)
    last = start + tl.minimum((row_end(blocks, BLOCK_M) - 1) // group, T - 1)
    end = tl.minimum(tl.maximum(last + 1, 0), L).to(tl.int32)

    q_row = (b * heads + head) * T + t
    peak = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    bad = tl.zeros((BLOCK_M,), dtype=tl.int32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    for n in range(first, end, BLOCK_N):
        key = n + tl.arange(0, BLOCK_N)
        some, slot = key < end, kv_row * L + key
        s = _dots(q_ptr, keys_ptr, q_row, slot, t < T, some, D, factor, BLOCK_M, BLOCK_N, BLOCK_K)
        if key_scale_ptr is not None:
            s = s * tl.load(key_scale_ptr + slot, mask=some, other=0.0)[None, :]
        visible = some[None, :] & (key[None, :] <= at[:, None])
        bad = bad | tl.max((visible & (s != s)).to(tl.int32), axis=1)
        s = tl.where(visible & (s == s), s, float("-inf"))
        larger = tl.maximum(peak, tl.max(s, axis=1))
        shrink = _weight(peak - larger)
        p = _weight(s - larger[:, None])
        peak = larger
        total = total * shrink + tl.sum(p, axis=1)
        if value_scale_ptr is not None:
            p = p * tl.load(value_scale_ptr + slot, mask=some, other=0.0)[None, :]
        v = _rows(values_ptr, slot, some, d, D)
        # A value that is not finite must not reach, as 0 * inf, the rows that do not see it; an
        # int8 value is finite, its scale may not be, and then p is NaN only where it is visible.
        p = tl.where(visible, p, 0.0)
        broken = magnitude(v) >= INFINITY
        mixed = mixed * shrink[:, None] + tl.dot(
            p, tl.where(broken, 0.0, v), input_precision="ieee"
        )
        if tl.max(broken.to(tl.int32)) > 0:
            for j in range(BLOCK_N):
                mixed += _broken_term(values_ptr, p, visible, slot, some, j, d, D, BLOCK_N)
    out = tl.div_rn(mixed, tl.broadcast_to(total[:, None], (BLOCK_M, BLOCK_K)))
    bad = (bad > 0) | (magnitude(peak) >= INFINITY)
    out = tl.where(bad[:, None], float("nan"), out)
    if start + (row_end(blocks, BLOCK_M) - BLOCK_M) // group < first:
        own = (at < first) & (at >= 0) & (at < L)
        x = _rows(q_ptr, q_row, t < T, d, D) * factor
        alone = _own_value(
            x, keys_ptr, values_ptr, key_scale_ptr, value_scale_ptr, kv_row * L + at, own, d, D
        )
        out = tl.where(own[:, None], alone, out)
    out_at = ((b * T + t) * heads + head).to(tl.int64) * D
    result = rounded(out, out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_at[:, None] + d[None, :], result, mask=present)


@triton.jit
def row_end(blocks, BLOCK_M: tl.constexpr):
    """Return the row after this program's last."""
    return (tl.program_id(0) % blocks) * BLOCK_M + BLOCK_M


@triton.jit
def _first(first_ptr, b):
    if first_ptr is None:
        return b * 0
    else:
        return tl.load(first_ptr + b)


@triton.jit
def _dots(
    q_ptr,
    keys_ptr,
    q_row,
    slot,
    present,
    some,
    D,
    factor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the products (BLOCK_M, BLOCK_N) of queries and keys."""
    piece: tl.constexpr = min(PIECE, BLOCK_K)
    s = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for j in range(0, D, piece):
        d = j + tl.arange(0, piece)
        x = _rows(q_ptr, q_row, present, d, D) * factor
        s += tl.dot(x, tl.trans(_rows(keys_ptr, slot, some, d, D)), input_precision="ieee")
    return s


@triton.jit
def _rows(ptr, slot, some, d, D):
    """Return vectors of width D as float32, zeros where ``some`` is false and past D."""
    inside = some[:, None] & (d < D)[None, :]
    at = slot.to(tl.int64)[:, None] * D + d[None, :]
    return widened(tl.load(ptr + at, mask=inside, other=0))


@triton.jit
def _weight(gap):
    """Return exp(gap) for gap <= 0, and 0 far below and for NaN."""
    near = gap >= -86.0
    return tl.where(near, exp(tl.where(near, gap, 0.0)), 0.0)


@triton.jit
def _broken_term(values_ptr, p, visible, slot, some, j, d, D, BLOCK_N: tl.constexpr):
    """Return what value j of the block adds in the elements where it is not finite."""
    column = (tl.arange(0, BLOCK_N) == j)[None, :]
    weight = tl.sum(tl.where(column, p, 0.0), axis=1)[:, None]
    sees = tl.max((column & visible).to(tl.int32), axis=1)[:, None] > 0
    here = tl.arange(0, BLOCK_N) == j
    at = tl.sum(tl.where(here & some, slot, 0), axis=0)
    v = widened(tl.load(values_ptr + at * D + d, mask=d < D, other=0))[None, :]
    return tl.where(sees & (magnitude(v) >= INFINITY), weight * v, 0.0)


@triton.jit
def _own_value(x, keys_ptr, values_ptr, key_scale_ptr, value_scale_ptr, slot, own, d, D):
    """Return each row's attention to the one key in its own slot."""
    s = tl.sum(x * _rows(keys_ptr, slot, own, d, D), axis=1)
    v = _rows(values_ptr, slot, own, d, D)
    if key_scale_ptr is not None:
        s = s * tl.load(key_scale_ptr + slot, mask=own, other=0.0)
        v = v * tl.load(value_scale_ptr + slot, mask=own, other=0.0)[:, None]
    return tl.where(magnitude(s)[:, None] >= INFINITY, float("nan"), v)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
    first: Tensor | None,
) -> Tensor:
    batch, heads, tokens, d = q.shape
    out = torch.empty((batch, tokens, heads, d), dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    config, kv_heads = config_for(d), keys.shape[1]
    cache = (keys, values, key_scale, value_scale)
    launch(
        _attention_kernel,
        batch * kv_heads * triton.cdiv(tokens * heads // kv_heads, config.block_m),
        config,
        q.contiguous(),
        *(None if c is None else c.contiguous() for c in cache),
        start,
        None if first is None else first.contiguous(),
        out,
        *(heads, heads // kv_heads, tokens, keys.shape[2], d, score_factor(d)),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
    )
    return out
