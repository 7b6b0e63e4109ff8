"""Triton kernel of ``top_k``. Contract: bitnet_torch/ops/top_k.py.

One program a row, k passes: each looks for the largest key below the one before. A key is the
value's rank in 32 bits and, below it, the id counted from the top, so no two keys are equal and
the lower id of equals is the larger key.
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

CONFIG = KernelConfig(block_k=2048)


@triton.jit
def _top_k_kernel(
    x_ptr,  # (M, V) float32
    allowed_ptr,  # (M, V) bool: what may be chosen; None for everything
    values_ptr,  # (M, k) float32
    ids_ptr,  # (M, k) int64
    V,
    k,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    # Above and below every key.
    previous = tl.full((), 0x7FFFFFFFFFFFFFFF, dtype=tl.int64)
    for j in range(0, k):
        best = tl.full((BLOCK,), -0x7FFFFFFFFFFFFFFF, dtype=tl.int64)
        for v0 in range(0, V, BLOCK):
            v = v0 + column
            x = tl.load(x_ptr + m * V + v, mask=v < V, other=0.0)
            inside = v < V
            if allowed_ptr is not None:
                inside &= tl.load(allowed_ptr + m * V + v, mask=v < V, other=0) != 0
            key = _key(x, v)
            best = tl.maximum(best, tl.where(inside & (key < previous), key, -0x7FFFFFFFFFFFFFFF))
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
    if ids.numel():
        launch(
            _top_k_kernel,
            logits.shape[:-1].numel(),
            CONFIG,
            logits.contiguous(),
            None if allowed is None else allowed.contiguous(),
            values,
            ids,
            logits.shape[-1],
            k,
            BLOCK=CONFIG.block_k,
        )
    return values, ids
