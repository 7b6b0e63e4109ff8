"""Triton kernel of ``rope``. Contract: bitnet_torch/ops/rope.py.

A program turns BLOCK_M heads. The tables are read where they lie: head m takes their row
``m // repeats % table_rows``, which is what broadcasting over the dimensions in front of the
positions and behind them means.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import rope as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import rounded, widened

CONFIG = KernelConfig(block_m=16, block_k=64)


@triton.jit
def _rope_kernel(
    x_ptr,  # (M, 2 * H) float
    cos_ptr,  # (table_rows, H) float32
    sin_ptr,  # (table_rows, H) float32
    y_ptr,  # (M, 2 * H), x's
    M,
    H,
    repeats,
    table_rows,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = (m.to(tl.int64) * (2 * H))[:, None]
    table = ((m // repeats % table_rows).to(tl.int64) * H)[:, None]
    column = tl.arange(0, BLOCK_K)[None, :]
    for j in range(0, H, BLOCK_K):
        at = j + column
        inside = (m[:, None] < M) & (at < H)
        x1 = widened(tl.load(x_ptr + head + at, mask=inside, other=0.0))
        x2 = widened(tl.load(x_ptr + head + H + at, mask=inside, other=0.0))
        cos = tl.load(cos_ptr + table + at, mask=inside, other=0.0)
        sin = tl.load(sin_ptr + table + at, mask=inside, other=0.0)
        y1 = rounded(x1 * cos - x2 * sin, y_ptr.dtype.element_ty)
        y2 = rounded(x2 * cos + x1 * sin, y_ptr.dtype.element_ty)
        tl.store(y_ptr + head + at, y1, mask=inside)
        tl.store(y_ptr + head + H + at, y2, mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    *lead, d = x.shape
    period = _period(lead, list(cos.shape[:-1]))
    if period is None:
        cos, sin = (table.expand(*lead, d // 2) for table in (cos, sin))
        period = (1, math.prod(lead))
    launch(
        _rope_kernel,
        triton.cdiv(math.prod(lead), CONFIG.block_m),
        CONFIG,
        x,
        cos.contiguous(),
        sin.contiguous(),
        y,
        math.prod(lead),
        d // 2,
        *period,
        BLOCK_M=CONFIG.block_m,
        BLOCK_K=CONFIG.block_k,
    )
    return y


def _period(lead: list[int], table: list[int]) -> tuple[int, int] | None:
    """Return (repeats, table_rows) of a table whose own dimensions stand side by side, else None.

    Args:
        lead: Leading sizes of x, none of them 0.
        table: Leading sizes of the table; each is 1 or x's, counted from the right.
    """
    table = [1] * (len(lead) - len(table)) + table
    own = [i for i, size in enumerate(table) if size != 1]
    if not own:
        return 1, 1
    first, last = own[0], own[-1] + 1
    if table[first:last] != lead[first:last]:
        return None
    return math.prod(lead[last:]), math.prod(lead[first:last])
