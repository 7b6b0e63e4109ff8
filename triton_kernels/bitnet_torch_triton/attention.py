"""Triton kernel of ``attention``. Contract: bitnet_torch/ops/attention.py.

A program owns BLOCK_M rows (a head of a token each) that share a key head. Their keys are cut into
chunks of 256 and these into blocks, counted from the sequence's first key. A block gives each row a
peak, the sum of its weights and the sum of its weighted values; blocks are merged into chunks and
chunks into the result, in their order. So sums depend on the distance from the first key and on
nothing else: bits depend on neither batch, padding, chunks of a prompt, nor on who computes what.
A sum of weights is a product with ones, whose order, unlike a reduction's, is that of the keys.

Where there are fewer programs than a GPU can run, as in decoding, each chunk has a program of its
own (SPLIT). It writes what its chunk gives, draws a ticket, and the one with the last ticket merges
all chunks: it reads what others wrote before they drew theirs, in the order of the keys. It also
puts the tickets back. Sums are in float32 whatever the dtype. Heads up to 256 wide keep to
registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from bitnet_torch.ops import attention as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.attention import score_factor
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import INFINITY, exp, magnitude, rounded, widened
from bitnet_torch_triton.policy import arch_of, processors

# Elements of a head that a product takes at a time: its operands lie in registers whole.
PIECE = tl.constexpr(32)
# Keys whose sums are made by one program; a multiple of every BLOCK_N.
CHUNK = tl.constexpr(256)
# Widths of the float32 numbers beside the D sums of a row: its peak and the sum of its weights.
BESIDE = tl.constexpr(2)


def config_for(d: int, rows: int, arch: str) -> KernelConfig:
    """Return the launch configuration for heads of ``d`` elements and so many rows a key head.

    NVIDIA's cores add up float32 products one by one, whatever the tile, so few rows have a tile
    of their own there, and wide heads one that fits the registers; the matrix units of AMD take
    several at a time, and their tiles differ.
    """
    block_k = max(16, triton.next_power_of_2(max(d, 1)))
    nvidia = arch.startswith("sm_")
    few = nvidia and rows <= 4
    return KernelConfig(
        block_m=(4 if block_k > 64 else 8) if few else 8 if nvidia and block_k > 128 else 16,
        # The same for all rows: a block's sums are those of so many keys.
        block_n=32 if block_k <= 128 else 16,
        block_k=block_k,
        num_warps=4 if few else 8,
    )


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
    parts_ptr,  # (owners, chunks, BLOCK_M, D + 2) float32; None without SPLIT
    ticket_ptr,  # (owners,) int32, zeros before and after; None without SPLIT
    heads,
    group,  # heads that share a key head
    T,
    L,
    D,
    chunks,  # of L keys
    owners,  # programs of a chunk
    factor,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The rows of an output have one owner: the program, or with SPLIT the last of its owner's."""
    owner = tl.program_id(0) % owners
    b, kv_row, t, head = _rows_of(owner, heads, group, T, BLOCK_M)
    at, first, end = _keys_of(start_ptr, first_ptr, b, t, T, L)
    queries = (q_ptr, (b * heads + head) * T + t, t < T, at, factor)
    cache = (keys_ptr, values_ptr, key_scale_ptr, value_scale_ptr, kv_row * L)
    shape: tl.constexpr = (BLOCK_M, BLOCK_N, BLOCK_K)
    if SPLIT:
        chunk = tl.program_id(0) // owners
        state = _chunk(queries, cache, first + chunk * CHUNK, end, D, shape)
        room = parts_ptr + owner.to(tl.int64) * chunks * BLOCK_M * (D + BESIDE)
        _put(state, room, chunk, D, shape)
        mine = _is_last(ticket_ptr + owner, chunks)
        if mine:
            state = _all(room, tl.cdiv(end - first, CHUNK), D, shape)
    else:
        mine = True
        state = _walk(queries, cache, first, end, D, shape)
    if mine:
        out = _finished(state, queries, cache, first, L, D, shape)
        _store(out_ptr, out, ((b * T + t) * heads + head).to(tl.int64) * D, t < T, D)


@triton.jit
def _rows_of(owner, heads, group, T, BLOCK_M: tl.constexpr):
    """Return sequence, sequence and key head as one number, and each row's token and head."""
    blocks = tl.cdiv(T * group, BLOCK_M)
    kv_row = (owner // blocks).to(tl.int64)
    b, kv_head = kv_row // (heads // group), kv_row % (heads // group)
    row = (owner % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    return b, kv_row, row // group, kv_head * group + row % group


@triton.jit
def _keys_of(start_ptr, first_ptr, b, t, T, L):
    """Return each row's last key, and the first and the end of all that any row sees."""
    start = tl.load(start_ptr)
    first = b * 0
    if first_ptr is not None:
        first = tl.load(first_ptr + b)
    first = tl.minimum(tl.maximum(first, 0), L).to(tl.int32)
    last = start + tl.minimum(tl.max(t, axis=0), T - 1)
    return start + t, first, tl.minimum(tl.maximum(last + 1, 0), L).to(tl.int32)


@triton.jit
def _nothing(shape: tl.constexpr):
    """Return the state of rows that have seen no key: peak, sum of weights, weighted values."""
    peak = tl.full((shape[0],), float("-inf"), dtype=tl.float32)
    total = tl.zeros((shape[0],), dtype=tl.float32)
    return peak, total, tl.zeros((shape[0], shape[2]), dtype=tl.float32)


@triton.jit
def _merged(state, other):
    """Return what rows have seen of the keys before and, in ``other``, of those behind."""
    larger = tl.maximum(state[0], other[0])
    a, b = _weight(state[0] - larger), _weight(other[0] - larger)
    total = state[1] * a + other[1] * b
    return larger, total, state[2] * a[:, None] + other[2] * b[:, None]


@triton.jit
def _walk(queries, cache, first, end, D, shape: tl.constexpr):
    """Return what rows see of all chunks, one after the other."""
    state = _nothing(shape)
    for i in range(0, tl.cdiv(end - first, CHUNK)):
        state = _merged(state, _chunk(queries, cache, first + i * CHUNK, end, D, shape))
    return state


@triton.jit
def _chunk(queries, cache, begin, end, D, shape: tl.constexpr):
    """Return what rows see of the chunk that begins at key ``begin``."""
    BLOCK_N: tl.constexpr = shape[1]
    state = _nothing(shape)
    for n in range(begin, tl.minimum(begin + CHUNK, end), BLOCK_N):
        state = _merged(state, _block(queries, cache, n + tl.arange(0, BLOCK_N), end, D, shape))
    return state


@triton.jit
def _block(queries, cache, key, end, D, shape: tl.constexpr):
    """Return what rows see of some keys; a sum of weights that is NaN says that a score was."""
    q_ptr, q_row, present, at, factor = queries
    keys_ptr, values_ptr, key_scale_ptr, value_scale_ptr, base = cache
    some, slot = key < end, base + key
    s = _dots(q_ptr, keys_ptr, q_row, slot, present, some, D, factor, shape)
    if key_scale_ptr is not None:
        s = s * tl.load(key_scale_ptr + slot, mask=some, other=0.0)[None, :]
    visible = some[None, :] & (key[None, :] <= at[:, None])
    bad = tl.max((visible & (s != s)).to(tl.int32), axis=1) > 0
    s = tl.where(visible & (s == s), s, float("-inf"))
    peak = tl.max(s, axis=1)
    p = _weight(s - peak[:, None])
    total = tl.max(tl.dot(p, tl.full((shape[1], 16), 1.0, tl.float32), input_precision="ieee"), 1)
    if value_scale_ptr is not None:
        p = p * tl.load(value_scale_ptr + slot, mask=some, other=0.0)[None, :]
    d = tl.arange(0, shape[2])
    v = _rows(values_ptr, slot, some, d, D)
    # A value that is not finite must not reach, as 0 * inf, the rows that do not see it; an
    # int8 value is finite, its scale may not be, and then p is NaN only where it is visible.
    p = tl.where(visible, p, 0.0)
    broken = magnitude(v) >= INFINITY
    mixed = tl.dot(p, tl.where(broken, 0.0, v), input_precision="ieee")
    if tl.max(broken.to(tl.int32)) > 0:
        for j in range(shape[1]):
            mixed += _broken_term(values_ptr, p, visible, slot, some, j, d, D, shape[1])
    return peak, tl.where(bad, float("nan"), total), mixed


@triton.jit
def _put(state, room, chunk, D, shape: tl.constexpr):
    """Write what a chunk gives into its place."""
    row = (chunk * shape[0] + tl.arange(0, shape[0])) * (D + BESIDE)
    d = tl.arange(0, shape[2])
    tl.store(room + row[:, None] + d[None, :], state[2], mask=(d < D)[None, :])
    tl.store(room + row + D, state[0])
    tl.store(room + row + D + 1, state[1])


@triton.jit
def _got(room, chunk, D, shape: tl.constexpr):
    """Read what a chunk gives; others wrote it, so it is not looked for in this one's L1 cache."""
    row = (chunk * shape[0] + tl.arange(0, shape[0])) * (D + BESIDE)
    d = tl.arange(0, shape[2])
    at = room + row[:, None] + d[None, :]
    mixed = tl.load(at, mask=(d < D)[None, :], other=0.0, cache_modifier=".cg")
    peak = tl.load(room + row + D, cache_modifier=".cg")
    return peak, tl.load(room + row + D + 1, cache_modifier=".cg"), mixed


@triton.jit
def _all(room, chunks, D, shape: tl.constexpr):
    """Return what all chunks together give, in the order of the keys."""
    state = _nothing(shape)
    for i in range(0, chunks):
        state = _merged(state, _got(room, i, D, shape))
    return state


@triton.jit
def _is_last(ticket_ptr, chunks):
    """Return whether this program is the last of ``chunks`` to come here; it resets the count."""
    # Every thread has written before one of them draws for all.
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == chunks - 1
    if last:
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def _finished(state, queries, cache, first, L, D, shape: tl.constexpr):
    """Return the output of each row; one before the first key attends to its own key alone."""
    q_ptr, q_row, present, at, factor = queries
    keys_ptr, values_ptr, key_scale_ptr, value_scale_ptr, base = cache
    peak, total, mixed = state
    out = tl.div_rn(mixed, tl.broadcast_to(total[:, None], (shape[0], shape[2])))
    bad = (total != total) | (magnitude(peak) >= INFINITY)
    out = tl.where(bad[:, None], float("nan"), out)
    if tl.min(at, axis=0) < first:
        own, d = (at < first) & (at >= 0) & (at < L), tl.arange(0, shape[2])
        x = _rows(q_ptr, q_row, present, d, D) * factor
        scales = (key_scale_ptr, value_scale_ptr)
        alone = _own_value(x, keys_ptr, values_ptr, *scales, base + at, own, d, D)
        out = tl.where(own[:, None], alone, out)
    return out


@triton.jit
def _store(out_ptr, out, at, present, D):
    d = tl.arange(0, out.shape[1])
    result = rounded(out, out_ptr.dtype.element_ty)
    inside = present[:, None] & (d < D)[None, :]
    tl.store(out_ptr + at[:, None] + d[None, :], result, mask=inside)


@triton.jit
def _dots(q_ptr, keys_ptr, q_row, slot, present, some, D, factor, shape: tl.constexpr):
    """Return the products (BLOCK_M, BLOCK_N) of queries and keys."""
    BLOCK_K: tl.constexpr = shape[2]
    piece: tl.constexpr = min(PIECE, BLOCK_K) if BLOCK_K <= 128 else PIECE // 2
    s = tl.zeros((shape[0], shape[1]), dtype=tl.float32)
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


# Tickets of the programs that share a cache, by its tensor of keys: two launches on one cache at a
# time would be a mistake anyway, so no two use the same at once.
_tickets: WeakIdKeyDictionary = WeakIdKeyDictionary()


def tickets_for(keys: Tensor, owners: int) -> Tensor:
    """Return at least ``owners`` zeros that belong to a cache."""
    held: Tensor | None = _tickets.get(keys)
    if held is None or held.numel() < owners:
        held = torch.zeros(owners, dtype=torch.int32, device=keys.device)
        _tickets[keys] = held
    return held


def is_split(owners: int, chunks: int, device: torch.device) -> bool:
    """Return whether chunks shall have programs of their own: where the GPU is idle without."""
    return chunks > 1 and owners < processors(device)


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
    kv_heads, length = keys.shape[1:3]
    rows = tokens * heads // kv_heads
    config = config_for(d, rows, arch_of(q.device))
    owners = batch * kv_heads * triton.cdiv(rows, config.block_m)
    chunks = triton.cdiv(length, CHUNK.value)
    split = is_split(owners, chunks, q.device)
    size = owners * chunks * config.block_m * (d + BESIDE.value)
    cache = (keys, values, key_scale, value_scale)
    launch(
        _attention_kernel,
        owners * chunks if split else owners,
        config,
        q.contiguous(),
        *(None if c is None else c.contiguous() for c in cache),
        start,
        None if first is None else first.contiguous(),
        out,
        torch.empty(size, dtype=torch.float32, device=q.device) if split else None,
        tickets_for(keys, owners) if split else None,
        *(heads, heads // kv_heads, tokens, length, d, chunks, owners, score_factor(d)),
        SPLIT=split,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
    )
    return out
