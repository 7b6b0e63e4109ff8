"""Triton kernel of ``float_linear``. Contract: bitnet_torch/ops/float_linear.py.

A decode step waits for the weights, so these are read once for up to eight tokens, sixteen bytes a
load, and multiplied on the cores, whose float32 sums have an order that we can choose: lane i of
BLOCK_K / 8 adds up columns 8 i to 8 i + 7 of every BLOCK_K, one after the other, with fused
products, and then the lanes are added in turn. So an output is the same sum, in an order of K only,
whatever stands beside it in the batch. A reduction's order would be that of the layout of its
lanes, which Triton chooses by alignments; a product with ones adds in turn (:func:`_of_lanes`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import float_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.lanes import ahead, eight_floats
from bitnet_torch_triton.number import rounded, widened
from bitnet_torch_triton.policy import INTERPRETER, arch_of

# Columns that a lane takes at a time: 16 bytes where they are 16 bits wide.
EACH = tl.constexpr(8)
TOKENS = 8


def config_for(tokens: int, arch: str) -> KernelConfig:
    """Return the configuration for so many tokens.

    ``block_k`` is the same for all of an architecture: it decides the order of the sums.
    """
    if arch == INTERPRETER:
        # Few programs, for what counts there is the number of operations.
        return KernelConfig(block_n=128, rows=1, block_k=512)
    rows = 8 if tokens == 1 else 4
    if arch.startswith("gfx"):
        # Their matrix units add up the lanes, sixteen rows at a time.
        return KernelConfig(block_n=16 * rows, rows=rows, block_k=256, num_warps=8)
    return KernelConfig(block_n=4 * rows, rows=rows, block_k=256)


def constants_of(tokens: int, k: int, config: KernelConfig) -> dict[str, Any]:
    """Return the compile-time arguments for so many tokens, which tell powers of two apart."""
    # Where a load takes one element, eight tokens would take more registers than there are.
    most = TOKENS if k % 16 == 0 else TOKENS // 2
    return {
        "TOKENS": min(most, triton.next_power_of_2(tokens)),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "ROWS": config.rows,
        "UNROLL": config.unroll,
    }


def programs_of(m: int, n: int, constants: dict[str, Any]) -> int:
    """Return the number of programs for (m, n) outputs."""
    count: int = triton.cdiv(m, constants["TOKENS"]) * triton.cdiv(n, constants["BLOCK_N"])
    return count


@triton.jit
def place_of(M, TOKENS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return this program's first token and its first row. Those who share rows are neighbours."""
    groups = tl.cdiv(M, TOKENS)
    m0 = (tl.program_id(0) % groups).to(tl.int64) * TOKENS
    return m0, (tl.program_id(0) // groups).to(tl.int64) * BLOCK_N


@triton.jit
def outputs_of(m0, n0, M, N, r: tl.constexpr, i: tl.constexpr, DOWN: tl.constexpr):
    """Return the rows of sum ``r``, where outputs for token ``i`` lie, and which there are."""
    n = n0 + r * DOWN + tl.arange(0, DOWN)
    m = n * 0 + m0 + i
    return n, m * N + n, (m < M) & (n < N)


@triton.jit
def float_sums(
    x_ptr,
    w_ptr,
    m0,
    n0,
    M,
    N,
    K,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Return the sums of the program's rows, a tensor for each ROWS of them and each token.

    Rows past N and tokens past M repeat the last one.
    """
    DOWN: tl.constexpr = BLOCK_N // ROWS
    LANES: tl.constexpr = BLOCK_K // EACH
    down = tl.arange(0, DOWN)[:, None, None]
    column = (tl.arange(0, LANES) * EACH)[None, :, None] + tl.arange(0, EACH)[None, None, :]
    column += down * 0
    xs, ws = (), ()
    for i in tl.static_range(TOKENS):
        xs = xs + (x_ptr + tl.minimum(m0 + i, M - 1) * K + column,)
    for r in tl.static_range(ROWS):
        ws = ws + (w_ptr + tl.minimum(n0 + r * DOWN + down, N - 1) * K + column,)
    acc = (tl.zeros((DOWN, LANES), dtype=tl.float32),) * (TOKENS * ROWS)
    for _ in tl.range(0, K // BLOCK_K, loop_unroll_factor=UNROLL):
        acc = _turn(acc, xs, ws, column, None)
        xs, ws = ahead(xs, BLOCK_K), ahead(ws, BLOCK_K)
    done = K // BLOCK_K * BLOCK_K
    if done < K:
        acc = _turn(acc, xs, ws, column, K - done)
    sums = ()
    for i in tl.static_range(TOKENS * ROWS):
        sums = sums + (_of_lanes(acc[i]),)
    return sums


@triton.jit
def _turn(acc, xs, ws, column, end):
    """Add the products of eight columns of each lane; those from ``end`` on count as 0."""
    x = ()
    for i in tl.static_range(len(xs)):
        x = x + (eight_floats(xs[i], column, end),)
    out = ()
    for r in tl.static_range(len(ws)):
        w = eight_floats(ws[r], column, end)
        for i in tl.static_range(len(xs)):
            total = acc[r * len(xs) + i]
            for e in tl.static_range(EACH):
                total = tl.fma(x[i][e], w[e], total)
            out = out + (total,)
    return out


@triton.jit
def _of_lanes(acc):
    """Return the sum over the lanes of each row, in turn."""
    ones = tl.full((acc.shape[1], 16), 1.0, tl.float32)
    columns = tl.dot(acc, ones, input_precision="ieee")
    # All are the same; one is picked so that a NaN stays.
    return tl.sum(tl.where(tl.arange(0, 16)[None, :] == 0, columns, 0.0), axis=1)


@triton.jit
def _float_linear_kernel(
    x_ptr,  # (M, K) float
    w_ptr,  # (N, K) float
    bias_ptr,  # (N,) float or None
    y_ptr,  # (M, N)
    M,
    N,
    K,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """A program owns BLOCK_N outputs of TOKENS tokens."""
    m0, n0 = place_of(M, TOKENS, BLOCK_N)
    sums = float_sums(x_ptr, w_ptr, m0, n0, M, N, K, TOKENS, BLOCK_N, BLOCK_K, ROWS, UNROLL)
    for r in tl.static_range(ROWS):
        for i in tl.static_range(TOKENS):
            n, at, inside = outputs_of(m0, n0, M, N, r, i, BLOCK_N // ROWS)
            y = sums[r * TOKENS + i]
            if bias_ptr is not None:
                y += widened(tl.load(bias_ptr + n, mask=n < N, other=0.0))
            tl.store(y_ptr + at, rounded(y, y_ptr.dtype.element_ty), mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    n, k = weight.shape
    y = torch.empty((*x.shape[:-1], n), dtype=dtype or x.dtype, device=x.device)
    if not y.numel():
        return y
    m = x.shape[:-1].numel()
    config = config_for(m, arch_of(x.device))
    constants = constants_of(m, k, config)
    tensors = (x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous(), y)
    programs = programs_of(m, n, constants)
    launch(_float_linear_kernel, programs, config, *tensors, m, n, k, **constants)
    return y
