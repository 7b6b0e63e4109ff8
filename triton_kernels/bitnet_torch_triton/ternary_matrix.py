"""What the kernels of ternary products share: which matrix a program is for, and its results.

A launch is for one or several matrices that meet the same activations. Each is a tuple of
codes (N, bytes of a row) in layout planar64, w_scale () or (N,) float32, its stride (0 or 1),
y (M, N) and N; ``biases`` is None or one (N,) for each. The programs of the first come first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bitnet_torch_triton.number import rounded, widened

# The place of N in a matrix.
ROWS = tl.constexpr(4)


@triton.jit
def chosen(matrices, biases, program, BLOCK_N: tl.constexpr):
    """Return the matrix that ``program`` is for, and which of its blocks of rows.

    Without biases the bias is a pointer that nobody may use: Triton 3.6 returns no None.
    """
    codes, w_scale, stride, y, N = matrices[0]
    bias = y if biases is None else biases[0]
    block = program
    first = 0
    for i in tl.static_range(1, len(matrices)):
        first += tl.cdiv(matrices[i - 1][ROWS], BLOCK_N)
        here = program >= first
        block = tl.where(here, program - first, block)
        codes = tl.where(here, matrices[i][0], codes)
        w_scale = tl.where(here, matrices[i][1], w_scale)
        stride = tl.where(here, matrices[i][2], stride)
        y = tl.where(here, matrices[i][3], y)
        N = tl.where(here, matrices[i][ROWS], N)
        if biases is not None:
            bias = tl.where(here, biases[i], bias)
    return codes, w_scale, stride, bias, y, N, block


@triton.jit
def real(acc, scale, dtype: tl.constexpr):
    """Return the product in real units, rounded."""
    return rounded(acc.to(tl.float32) * scale, dtype)


@triton.jit
def biased(y, bias, dtype: tl.constexpr):
    """Return rounded results with the bias, rounded."""
    return rounded(widened(y) + widened(bias), dtype)
