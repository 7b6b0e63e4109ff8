"""Gluon kernel of ternary products for two to eight tokens, on NVIDIA's matrix units.

Contract: bitnet_torch/ops/ternary_linear.py. The weights are the operand of 16 rows, the tokens
the 8 columns. With 16 neighbouring bytes of a row in a lane (``k_width``) for both operands, what
a lane loads is its fragment: nothing passes through shared memory. The order of K inside an
instruction is any, as long as both operands have the same. Codes in bits 2j + 2 enter four times
as large, into sums of their own; t + 1 instead of t makes a sum too large by that of the token.

A program owns BLOCK_N rows of one matrix and all tokens, and walks along K alone: SPLIT_K groups
of warps take turns of 512 codes and add up at the end. Only whole turns are in the main loop; what
is left of K is multiplied after it, masked. Rows past N and tokens past M repeat the last one and
are not stored, so each output has one writer.

The interpreter, AMD's compiler and every other number of tokens have ternary_gemm.py.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from bitnet_torch_triton.ternary_matrix import biased, chosen, real

TOKENS = gl.constexpr(8)
TURN = gl.constexpr(128)  # bytes of a row


@gluon.jit
def _ternary_few_kernel(
    x_ptr,  # (M, 16 K16) int8
    x_scale_ptr,  # (M,) float32
    matrices,  # see ternary_matrix.py
    biases,
    M,
    K16,
    groups,
    BLOCK_N: gl.constexpr,
    SPLIT_K: gl.constexpr,
    WARPS: gl.constexpr,
):
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[SPLIT_K, WARPS // SPLIT_K, 1], instr_shape=[1, 16, 8]
    )
    codes, w_scale_ptr, stride, bias_ptr, y_ptr, N, block = chosen(
        matrices, biases, gl.program_id(0), BLOCK_N
    )
    n0, K = block * BLOCK_N, K16 * 16
    codes += n0.to(gl.int64) * (groups * 64)
    row, at = _row_places(BLOCK_N, SPLIT_K, mma)
    token, turn, byte = _token_places(SPLIT_K, mma)
    # The 128 bytes of a turn are two groups; these are the places that bits 0 and 1 meet.
    x_at = turn * (TURN * 4) + (byte // 64) * 256 + byte % 64
    ws = codes + (gl.minimum(row, N - 1 - n0) * (groups * 64) + at)
    xs = x_ptr + (gl.minimum(token, M - 1) * K + x_at)
    even = gl.zeros((SPLIT_K, BLOCK_N, TOKENS), gl.int32, mma)
    odd = gl.zeros((SPLIT_K, BLOCK_N, TOKENS), gl.int32, mma)
    turns = K // (SPLIT_K * TURN * 4)
    for _ in range(0, turns):
        even, odd = _turn(even, odd, xs, ws, x_at, None, at, None)
        ws += SPLIT_K * TURN
        xs += SPLIT_K * TURN * 4
    if turns * (SPLIT_K * TURN * 4) < K:
        done = turns * (SPLIT_K * TURN)
        even, odd = _turn(even, odd, xs, ws, x_at, K - done * 4, at, groups * 64 - done)
    acc = gl.sum(even + (odd >> 2), axis=0)
    out: gl.constexpr = gl.SliceLayout(0, mma)
    acc -= gl.convert_layout(_sums(x_ptr, M, K, WARPS), gl.SliceLayout(0, out))[None, :]
    n = n0 + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, out))
    m = gl.arange(0, TOKENS, layout=gl.SliceLayout(0, out))
    x_scale = gl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    w_scale = gl.load(w_scale_ptr + n * stride, mask=n < N, other=0.0)
    scale = x_scale[None, :] * w_scale[:, None]
    _store(y_ptr, acc, scale, bias_ptr, m, n, M, N, biases is not None)


@gluon.jit
def _row_places(BLOCK_N: gl.constexpr, SPLIT_K: gl.constexpr, mma: gl.constexpr):
    """Return each element's row of the block, and the byte's place in the row."""
    operand: gl.constexpr = gl.DotOperandLayout(0, mma, 16)
    turn = gl.arange(0, SPLIT_K, layout=gl.SliceLayout(1, gl.SliceLayout(2, operand)))
    row = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, gl.SliceLayout(2, operand)))
    byte = gl.arange(0, TURN, layout=gl.SliceLayout(0, gl.SliceLayout(1, operand)))
    return row[None, :, None], turn[:, None, None] * TURN + byte[None, None, :]


@gluon.jit
def _token_places(SPLIT_K: gl.constexpr, mma: gl.constexpr):
    """Return each element's token, whose turn it is in, and its place in the turn."""
    operand: gl.constexpr = gl.DotOperandLayout(1, mma, 16)
    turn = gl.arange(0, SPLIT_K, layout=gl.SliceLayout(1, gl.SliceLayout(2, operand)))
    byte = gl.arange(0, TURN, layout=gl.SliceLayout(0, gl.SliceLayout(2, operand)))
    token = gl.arange(0, TOKENS, layout=gl.SliceLayout(0, gl.SliceLayout(1, operand)))
    return token[None, None, :], turn[:, None, None], byte[None, :, None]


@gluon.jit
def _turn(even, odd, xs, ws, x_at, x_end, at, end):
    """Add the products of 512 codes of each row with all tokens; before the ends, if given."""
    byte = _loaded(ws, at, end, 0)
    even = mma_v2(_codes(byte, 0), _loaded(xs, x_at, x_end, 0), even)
    odd = mma_v2(_codes(byte, 1), _loaded(xs, x_at, x_end, 64), odd)
    even = mma_v2(_codes(byte, 2), _loaded(xs, x_at, x_end, 128), even)
    odd = mma_v2(_codes(byte, 3), _loaded(xs, x_at, x_end, 192), odd)
    return even, odd


@gluon.jit
def _loaded(ptr, at, end, offset: gl.constexpr):
    if end is None:
        return gl.load(ptr + offset)
    else:
        return gl.load(ptr + offset, mask=at + offset < end, other=0)


@gluon.jit
def _codes(byte, J: gl.constexpr):
    """Return the codes in bits 2J of each byte, four times as large if J is odd."""
    asm: gl.constexpr = _ASM[J]
    return gl.inline_asm_elementwise(asm, "=r,r", [byte], dtype=gl.int8, is_pure=True, pack=4)


_SHIFTED = "{{ .reg .b32 t; shr.u32 t, $1, 4; and.b32 $0, t, {}; }}"
_ASM = gl.constexpr(
    (
        "and.b32 $0, $1, 0x03030303;",
        "and.b32 $0, $1, 0x0c0c0c0c;",
        _SHIFTED.format("0x03030303"),
        _SHIFTED.format("0x0c0c0c0c"),
    )
)


@gluon.jit
def _sums(x_ptr, M, K, WARPS: gl.constexpr):
    """Return the sum of each token, by products with ones; each warp has a part of K."""
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[WARPS, 1, 1], instr_shape=[1, 16, 8]
    )
    token, turn, byte = _token_places(WARPS, mma)
    at = turn * TURN + byte
    ones = gl.full((WARPS, 16, TURN), 1, gl.int8, gl.DotOperandLayout(0, mma, 16))
    total = gl.zeros((WARPS, 16, TOKENS), gl.int32, mma)
    xs = x_ptr + (gl.minimum(token, M - 1) * K + at)
    for k in range(0, K, WARPS * TURN):
        total = mma_v2(ones, gl.load(xs + k, mask=k + at < K, other=0), total)
    return gl.max(gl.sum(total, axis=0), axis=0)


@gluon.jit
def _store(y_ptr, acc, scale, bias_ptr, m, n, M, N, BIASED: gl.constexpr):
    y = real(acc, scale, y_ptr.dtype.element_ty)
    if BIASED:
        bias = gl.load(bias_ptr + n, mask=n < N, other=0.0)
        y = biased(y, bias[:, None], y_ptr.dtype.element_ty)
    inside = (m < M)[None, :] & (n < N)[:, None]
    gl.store(y_ptr + m[None, :] * N + n[:, None], y, mask=inside)
