"""Triton kernel of ``rms_norm``, and the walk over rows that it shares with quantize_rows.py.

Contract: bitnet_torch/ops/rms_norm.py. A program owns BLOCK_M rows. Rows that fit the registers
(WHOLE) are read once and stay there; longer ones are read again for each pass: for the peak, for
the fixed-point sum of squares, for the result. The sum is over integers, so it may be split in any
way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import rms_norm as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted, interpreted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.glu import load_row
from bitnet_torch_triton.number import (
    TWO_TO_63,
    exponent,
    magnitude,
    nearest,
    pow2,
    rounded,
    widened,
)

# The longest row that registers hold, and the columns of a step where rows are longer.
WHOLE, STEP = 8192, 4096
# Elements of a program with short rows. The interpreter pays for operations, not for their size.
ELEMENTS = 1 << 14 if interpreted() else 1 << 11
# Of a lane: two loads of 16 bytes where they are 16 bits wide.
EACH = 16


def row_config(m: int, k: int) -> KernelConfig:
    """Return how to run a kernel over m rows of k elements: short rows share a program."""
    block_k = STEP if k > WHOLE else max(16, triton.next_power_of_2(k))
    block_m = max(1, min(16, triton.next_power_of_2(m), ELEMENTS // block_k))
    warps = block_m * block_k // (32 * EACH)
    return KernelConfig(block_m=block_m, block_k=block_k, num_warps=max(1, min(16, warps)))


def row_constants(config: KernelConfig, k: int) -> dict[str, int | bool]:
    """Return the compile-time arguments of such a kernel that say how it walks over rows."""
    return {"WHOLE": k <= WHOLE, "BLOCK_M": config.block_m, "BLOCK_K": config.block_k}


@triton.jit
def rows_of(x_ptr, u_ptr, M, K, BLOCK_M: tl.constexpr):
    """Return the rows of a program, and their numbers."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Without an activation nobody looks at u; Triton 3.6 takes no None into a tuple.
    u_ptr = x_ptr if u_ptr is None else u_ptr
    return (x_ptr, u_ptr, (m * K)[:, None], (m < M)[:, None], K), m


@triton.jit
def places(rows, k, BLOCK_K: tl.constexpr):
    """Return columns ``k`` and on, and where rows have them."""
    column = k + tl.arange(0, BLOCK_K)[None, :]
    return column, rows[3] & (column < rows[4])


@triton.jit
def elements(rows, k, ACTIVATION: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return columns ``k`` and on of the rows as float32, gated if there is an activation."""
    column, inside = places(rows, k, BLOCK_K)
    return load_row(rows[0], rows[1], rows[2] + column, inside, ACTIVATION)


@triton.jit
def inverse_rms(
    rows, held, eps, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Return r of each row as a column: NaN if the row cannot be normalised.

    Where the rows' elements are ``held``, they are not read.
    """
    end = rows[4] if held is None else BLOCK_K
    peaks = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for k in range(0, end, BLOCK_K):
        x = elements(rows, k, ACTIVATION, BLOCK_K) if held is None else held
        peaks = tl.maximum(peaks, magnitude(x))
    peak = tl.max(peaks, axis=1)
    bad = peak >= TWO_TO_63
    e = tl.maximum(exponent(tl.where(bad, 0, peak)), -40)
    squares = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int64)
    for k in range(0, end, BLOCK_K):
        x = elements(rows, k, ACTIVATION, BLOCK_K) if held is None else held
        u = nearest(tl.where(bad[:, None], 0.0, x) * pow2(22 - e)[:, None]).to(tl.int64)
        squares += u * u
    total = tl.sum(squares, axis=1).to(tl.float32)
    # A row of nothing is quantised, too: its places past the end must not become NaN.
    size = tl.cast(tl.maximum(rows[4], 1), tl.float32)
    ms = tl.div_rn(total, size) * pow2(2 * (e - 22))
    r = tl.div_rn(1.0, tl.sqrt_rn(ms + eps))
    return tl.where(bad, float("nan"), r)[:, None]


@triton.jit
def normalised(x, r, weight_ptr, column, inside, dtype: tl.constexpr):
    """Return float32 ``x``, normalised and rounded to ``dtype``, as float32."""
    weight = widened(tl.load(weight_ptr + column, mask=inside, other=0.0))
    return widened(rounded(weight * widened(rounded(x * r, dtype)), dtype))


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # (M, K) float
    weight_ptr,  # (K,) float
    y_ptr,  # (M, K), x's
    M,
    K,
    eps,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows, _ = rows_of(x_ptr, None, M, K, BLOCK_M)
    held = elements(rows, 0, None, BLOCK_K) if WHOLE else None
    r = inverse_rms(rows, held, eps, None, BLOCK_M, BLOCK_K)
    for k in range(0, BLOCK_K if WHOLE else K, BLOCK_K):
        column, inside = places(rows, k, BLOCK_K)
        x = held if WHOLE else elements(rows, k, None, BLOCK_K)
        y = normalised(x, r, weight_ptr, column, inside, y_ptr.dtype.element_ty)
        # A rounding of what is rounded: exact.
        tl.store(y_ptr + rows[2] + column, rounded(y, y_ptr.dtype.element_ty), mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    k = x.shape[-1]
    m = x.numel() // k
    config = row_config(m, k)
    programs, constants = triton.cdiv(m, config.block_m), row_constants(config, k)
    launch(_rms_norm_kernel, programs, config, x, weight, y, m, k, eps, **constants)
    return y
