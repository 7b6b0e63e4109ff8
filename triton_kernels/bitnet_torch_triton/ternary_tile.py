"""Triton kernel of ternary products for any number of tokens, by int8 tiles on the matrix units.

Contract: bitnet_torch/ops/ternary_linear.py. 64 bytes of a row are four tiles of codes, which
meet four tiles of activations in their natural order (planar64.py).

A program owns BLOCK_M tokens and BLOCK_N rows of one matrix and walks along K alone, so each
output has one writer.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bitnet_torch_triton.ternary_matrix import biased, chosen, real

GROUP = tl.constexpr(256)
BYTES = tl.constexpr(64)


@triton.jit
def _ternary_tile_kernel(
    x_ptr,  # (M, 16 K16) int8
    x_scale_ptr,  # (M,) float32
    matrices,  # see ternary_matrix.py
    biases,
    M,
    K16,
    groups,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    across = tl.cdiv(M, BLOCK_M)
    codes, w_scale_ptr, stride, bias_ptr, y_ptr, N, block = chosen(
        matrices, biases, tl.program_id(0) // across, BLOCK_N
    )
    m0 = (tl.program_id(0) % across).to(tl.int64) * BLOCK_M
    n0 = block.to(tl.int64) * BLOCK_N
    # Offsets inside a tile fit 32 bits, and half the registers, because K does.
    in_m, in_n, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BYTES)
    m, n, K = m0 + in_m, n0 + in_n, K16 * 16
    xs = x_ptr + m0 * K + (in_m[:, None] * K + column[None, :])
    ws = codes + n0 * (groups * BYTES) + (in_n[None, :] * (groups * BYTES) + column[:, None])
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for group in range(0, groups):
        byte = tl.load(ws + group * BYTES, mask=(n < N)[None, :], other=0)
        for j in tl.static_range(4):
            k = group * GROUP + j * BYTES
            # Past K the activation is 0, so what the byte says there is no matter.
            inside = (m < M)[:, None] & (k + column < K)[None, :]
            x = tl.load(xs + k, mask=inside, other=0)
            t = ((byte >> (2 * j)) & 3).to(tl.int8) - 1
            acc = tl.dot(x, t, acc, out_dtype=tl.int32)
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    w_scale = tl.load(w_scale_ptr + n * stride, mask=n < N, other=0.0)
    y = real(acc, x_scale[:, None] * w_scale[None, :], y_ptr.dtype.element_ty)
    if biases is not None:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)
        y = biased(y, bias[None, :], y_ptr.dtype.element_ty)
    tl.store(y_ptr + m[:, None] * N + n[None, :], y, mask=(m < M)[:, None] & (n < N)[None, :])
