"""Triton kernels of ``top_k``. Contract: bitnet_torch/ops/top_k.py.

A key is the value's rank in 32 bits and, below it, the id counted from the top: no two keys are
equal, and the lower id of equals is the larger key. The k largest of some keys are found in k
passes, each of which looks for the largest below the one before.

A long row is first cut into pieces that registers hold. Each has a program, which reads it once
and leaves its k largest keys; one program for each row then finds the k largest of these. Pieces
with fewer than k keys leave "nothing" in the other places, which is below every key.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import top_k as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import INFINITY

# Keys of a piece, and of a pass over what the pieces left.
CONFIG = KernelConfig(block_k=4096, num_warps=8)
# Above and below every key.
ALL = tl.constexpr(0x7FFFFFFFFFFFFFFF)
NOTHING = tl.constexpr(-0x7FFFFFFFFFFFFFFF)


@triton.jit
def _top_keys_kernel(
    x_ptr,  # (M, V) float32
    allowed_ptr,  # (M, V) bool: what may be chosen; None for everything
    keys_ptr,  # (M, pieces, k) int64
    V,
    k,
    BLOCK: tl.constexpr,
):
    pieces = tl.cdiv(V, BLOCK)
    m, v0 = (tl.program_id(0) // pieces).to(tl.int64), (tl.program_id(0) % pieces) * BLOCK
    v = v0 + tl.arange(0, BLOCK)
    inside = v < V
    key = _key(tl.load(x_ptr + m * V + v, mask=inside, other=0.0), v)
    if allowed_ptr is not None:
        inside &= tl.load(allowed_ptr + m * V + v, mask=inside, other=0) != 0
    key = tl.where(inside, key, NOTHING)
    out = keys_ptr + tl.program_id(0).to(tl.int64) * k
    previous = tl.full((), ALL, dtype=tl.int64)
    for j in range(0, k):
        previous = tl.max(tl.where(key < previous, key, NOTHING), axis=0)
        tl.store(out + j, previous)


@triton.jit
def _top_k_kernel(
    x_ptr,  # (M, V) float32
    keys_ptr,  # (M, count) int64
    values_ptr,  # (M, k) float32
    ids_ptr,  # (M, k) int64
    V,
    count,
    k,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64)
    previous = tl.full((), ALL, dtype=tl.int64)
    for j in range(0, k):
        best = tl.full((BLOCK,), NOTHING, dtype=tl.int64)
        for i0 in range(0, count, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            key = tl.load(keys_ptr + m * count + i, mask=i < count, other=NOTHING)
            best = tl.maximum(best, tl.where(key < previous, key, NOTHING))
        previous = tl.max(best, axis=0)
        chosen = 0x7FFFFFFF - (previous & 0xFFFFFFFF)
        tl.store(ids_ptr + m * k + j, chosen)
        tl.store(values_ptr + m * k + j, tl.load(x_ptr + m * V + chosen))


@triton.jit
def _key(x, v):
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    rank = tl.where(bits < 0, -size, size)
    rank = tl.where(size > INFINITY, 0x7FFFFFFF, rank)
    return (rank.to(tl.int64) << 32) | (0x7FFFFFFF - v).to(tl.int64)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return choose(logits, None, k)


def choose(logits: Tensor, allowed: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Compute the op among the ``allowed`` (bool, of logits' shape) values, at least k a row."""
    shape = (*logits.shape[:-1], k)
    values = torch.empty(shape, dtype=torch.float32, device=logits.device)
    ids = torch.empty(shape, dtype=torch.int64, device=logits.device)
    if not ids.numel():
        return values, ids
    logits, size, m = logits.contiguous(), logits.shape[-1], logits.shape[:-1].numel()
    pieces = triton.cdiv(size, CONFIG.block_k)
    keys = torch.empty((m, pieces * k), dtype=torch.int64, device=logits.device)
    held = None if allowed is None else allowed.contiguous()
    block = {"BLOCK": CONFIG.block_k}
    launch(_top_keys_kernel, m * pieces, CONFIG, logits, held, keys, size, k, **block)
    launch(_top_k_kernel, m, CONFIG, logits, keys, values, ids, size, pieces * k, k, **block)
    return values, ids
