"""What the kernels of ternary products share: which matrix a program is for, and its results.

A launch is for one or several matrices that meet the same activations. Each is a tuple of
codes (N, bytes of a row) in layout planar64, w_scale () or (N,) float32, its stride (0 or 1),
bias (N,) or None, y (M, N) and N. The programs of the first come first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bitnet_torch_triton.number import rounded, widened

# Members of a matrix.
ROWS = tl.constexpr(5)


@triton.jit
def chosen(matrices, program, BLOCK_N: tl.constexpr):
    """Return the matrix that ``program`` is for, and which of its blocks of rows."""
    codes, w_scale, stride, bias, y, N = matrices[0]
    block = program
    first = 0
    for i in tl.static_range(1, len(matrices)):
        first += tl.cdiv(matrices[i - 1][ROWS], BLOCK_N)
        here = program >= first
        block = tl.where(here, program - first, block)
        codes = tl.where(here, matrices[i][0], codes)
        w_scale = tl.where(here, matrices[i][1], w_scale)
        stride = tl.where(here, matrices[i][2], stride)
        if bias is not None:
            bias = tl.where(here, matrices[i][3], bias)
        y = tl.where(here, matrices[i][4], y)
        N = tl.where(here, matrices[i][ROWS], N)
    return codes, w_scale, stride, bias, y, N, block


@triton.jit
def real(acc, scale, bias, dtype: tl.constexpr):
    """Return the product in real units, rounded, with the bias if it is not None."""
    y = rounded(acc.to(tl.float32) * scale, dtype)
    if bias is not None:
        y = rounded(widened(y) + widened(bias), dtype)
    return y
