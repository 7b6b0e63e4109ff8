"""Triton kernel of ternary products for one token. Contract: bitnet_torch/ops/ternary_linear.py.

Four codes and four activations meet in one dot-product instruction. Codes are used as they lie
in their byte, masked and not shifted: those in bits 2j enter 4^j times as large, into a sum of
their own, which is divided once at the end, exactly, because every term is a multiple. With
t + 1 instead of t the sum is too large by that of the activations, which is subtracted.
The largest sum is 128 * 2 * 4^3 * K / 4 <= 2^29.

A program owns BLOCK_N rows of one matrix. Its lanes are a table: BLOCK_K / 64 of them side by
side walk along a row, 16 bytes each; BLOCK_N / ROWS stand below each other, and each multiplies
ROWS rows by the same activations; SPLIT_K such tables take turns along K. Only whole turns are
in the main loop; what is left of K is multiplied after it, masked. Nobody else writes the
program's outputs, and it reads no others: rows past N repeat the last one and are not stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bitnet_torch_triton.dot4 import dot4
from bitnet_torch_triton.lanes import ahead, four_words
from bitnet_torch_triton.ternary_matrix import biased, chosen, real

# A mask of a pair of bits in each byte of a word; the last is 0xC0C0C0C0.
MASKS = tl.constexpr((0x03030303, 0x0C0C0C0C, 0x30303030, -0x3F3F3F40))
ONES = tl.constexpr(0x01010101)
WORDS = tl.constexpr(16)  # of a group of codes


@triton.jit
def _ternary_gemv_kernel(
    x_ptr,  # (16 K16,) int8
    x_scale_ptr,  # (1,) float32
    matrices,  # see ternary_matrix.py
    biases,
    K16,
    groups,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    UNROLL: tl.constexpr,
    DOT: tl.constexpr,
):
    DOWN: tl.constexpr = BLOCK_N // ROWS
    LANES: tl.constexpr = BLOCK_K // 64
    TURN: tl.constexpr = SPLIT_K * LANES * 4  # words of a row
    codes, w_scale_ptr, stride, bias_ptr, y_ptr, N, block = chosen(
        matrices, biases, tl.program_id(0), BLOCK_N
    )
    n0, n = block * BLOCK_N, block * BLOCK_N + tl.arange(0, DOWN)
    word = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    first = codes.to(tl.pointer_type(tl.int32), bitcast=True)
    first += n0.to(tl.int64) * (groups * WORDS)
    at, x_at, down = _places(DOWN, LANES, SPLIT_K)
    xs, ws = word + x_at, ()
    for r in tl.static_range(ROWS):
        row = tl.minimum(down + r * DOWN, N - 1 - n0)[:, None, None]
        ws = ws + (first + (row * (groups * WORDS) + at),)
    acc = (tl.zeros((SPLIT_K * DOWN, LANES), dtype=tl.int32),) * (4 * ROWS)
    turns = K16 // TURN
    for _ in tl.range(0, turns, loop_unroll_factor=UNROLL):
        acc = _turn(acc, xs, ws, x_at, None, at, None, ROWS, DOT)
        xs += TURN * 4
        ws = ahead(ws, TURN)
    done = turns * TURN
    if done < K16:
        ends = K16 * 4 - done * 4, groups * WORDS - done
        acc = _turn(acc, xs, ws, x_at, ends[0], at, ends[1], ROWS, DOT)
    scale = tl.load(x_scale_ptr)
    surplus = _sum_of(word, K16, SPLIT_K * DOWN * LANES * 4, DOT)
    for r in tl.static_range(ROWS):
        total, out = _joined(acc, r, SPLIT_K, DOT) - surplus, n + r * DOWN
        w_scale = tl.load(w_scale_ptr + out * stride, mask=out < N, other=0.0)
        _store(y_ptr, total, scale * w_scale, bias_ptr, out, N, biases is not None)


@triton.jit
def _places(DOWN: tl.constexpr, LANES: tl.constexpr, SPLIT_K: tl.constexpr):
    """Return where each lane's words lie in a row, and in the activations; and its row."""
    lane, column = tl.arange(0, SPLIT_K * DOWN), tl.arange(0, LANES)
    inside = tl.arange(0, 4)[None, None, :]
    turn = (lane // DOWN)[:, None]
    at = turn * (LANES * 4) + (column * 4)[None, :]
    # A group's 16 bytes of each of four lanes are 64 activations in each of four runs.
    x_at = turn * (LANES * 16) + ((column // 4) * 64 + (column % 4) * 4)[None, :]
    return at[:, :, None] + inside, x_at[:, :, None] + inside, lane % DOWN


@triton.jit
def _turn(acc, xs, ws, x_at, x_end, at, end, ROWS: tl.constexpr, DOT: tl.constexpr):
    """Add the products of one 16-byte load of each row, 64 codes, to its four sums.

    Where the ends are given, words from there on count as 0.
    """
    x = ()
    for j in tl.static_range(4):
        x = x + (four_words(xs, x_at, x_end, 16 * j),)
    out = ()
    for r in tl.static_range(ROWS):
        w = four_words(ws[r], at, end, 0)
        a, b, c, d = acc[4 * r], acc[4 * r + 1], acc[4 * r + 2], acc[4 * r + 3]
        for i in tl.static_range(4):
            a = dot4(w[i] & MASKS[0], x[0][i], a, DOT)
            b = dot4(w[i] & MASKS[1], x[1][i], b, DOT)
            c = dot4(w[i] & MASKS[2], x[2][i], c, DOT)
            d = dot4(_last(w[i], DOT), x[3][i], d, DOT)
        out = out + (a, b, c, d)
    return out


@triton.jit
def _last(word, DOT: tl.constexpr):
    """Return the codes of bits 6 and 7: below the sign bit where bytes are signed."""
    if DOT == "v_dot4_i32_i8":
        return (word >> 2) & MASKS[2]
    else:
        return word & MASKS[3]


@triton.jit
def _joined(acc, r: tl.constexpr, SPLIT_K: tl.constexpr, DOT: tl.constexpr):
    """Return row r's four sums, each brought to its size, added up over all lanes of the row."""
    last: tl.constexpr = 4 if DOT == "v_dot4_i32_i8" else 6
    total = acc[4 * r] + (acc[4 * r + 1] >> 2) + (acc[4 * r + 2] >> 4) + (acc[4 * r + 3] >> last)
    lanes = tl.reshape(tl.sum(total, axis=1), (SPLIT_K, total.shape[0] // SPLIT_K))
    return tl.sum(lanes, axis=0)


@triton.jit
def _sum_of(word, K16, BLOCK: tl.constexpr, DOT: tl.constexpr):
    """Return the sum of the activations, which the first-level cache has by now."""
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    at = tl.arange(0, BLOCK)
    for k in range(0, K16 * 4, BLOCK):
        x = tl.load(word + k + at, mask=k + at < K16 * 4, other=0)
        total = dot4(tl.full((BLOCK,), ONES, dtype=tl.int32), x, total, DOT)
    return tl.sum(total, axis=0)


@triton.jit
def _store(y_ptr, total, scale, bias_ptr, n, N, BIASED: tl.constexpr):
    y = real(total, scale, y_ptr.dtype.element_ty)
    if BIASED:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)
        y = biased(y, bias, y_ptr.dtype.element_ty)
    tl.store(y_ptr + n, y, mask=n < N)
