"""The products of ternary_gemm.py on sm_90, in Gluon.

Plain Triton waits for each product whose first operand lies in registers, four times a step. Here
the four planes of a step are unpacked into registers of their own, all four products are
started, and the program waits once. While they run it adds up the activations and asks for the
tiles of a later step.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from bitnet_torch_triton.codes import add_each, plane
from bitnet_torch_triton.ternary_matrix import biased, chosen, real

# Triton 3.6 has these under other names.
_copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier
_commit, _wait = async_copy.commit_group, async_copy.wait_group

GROUP = gl.constexpr(256)
BYTES = gl.constexpr(64)


@gluon.jit
def _ternary_wgmma_kernel(
    x_ptr,  # (M, 16 K16) int8
    x_scale_ptr,  # (M,) float32
    matrices,  # see ternary_matrix.py; with PARTS, y is (parts, M, N) int32
    biases,  # see ternary_matrix.py
    M,
    K16,
    groups,
    part,  # groups of a part
    tiles,  # programs of a part
    FORM: gl.constexpr,
    BESIDE: gl.constexpr,  # always
    EVEN: gl.constexpr,  # activations are masked, whether or not
    PARTS: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Who owns and stores what is as in ``_ternary_gemm_kernel``. A step reads the stage that its
    own threads have waited for and a barrier has shown to all, and fills the stage of the step
    before, which that barrier says nobody reads any more."""
    warps: gl.constexpr = gl.num_warps()
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[warps, 1], instr_shape=[16, BLOCK_M, 32]
    )
    operand: gl.constexpr = gl.DotOperandLayout(0, mma, 4)
    shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=64, element_bitwidth=8, rank=2)
    flat: gl.constexpr = gl.BlockedLayout([1, 16], [8, 4], [warps, 1], [1, 0])
    bytes_in = gl.allocate_shared_memory(gl.uint8, [STAGES, BLOCK_N, BYTES], shared)
    x_in = gl.allocate_shared_memory(gl.int8, [4 * STAGES, BLOCK_M, BYTES], shared)
    across, cut = gl.cdiv(M, BLOCK_M), gl.program_id(0) // tiles
    tile = gl.program_id(0) % tiles
    codes, w_scale_ptr, stride, bias_ptr, y_ptr, N, block = chosen(
        matrices, biases, tile // across, BLOCK_N
    )
    m0, n0, K = (tile % across) * BLOCK_M, block * BLOCK_N, K16 * 16
    first = cut * part
    last = gl.minimum(first + part, groups)
    ws = _corner(codes, n0, N, groups * BYTES, BLOCK_N, flat)
    xs = _corner(x_ptr, m0, M, K, BLOCK_M, flat)
    acc, sums = _accumulated(ws, xs, (bytes_in, x_in), first, last, K, FORM, STAGES, operand, flat)
    acc -= gl.convert_layout(gl.sum(sums, axis=1), gl.SliceLayout(0, mma))[None, :]
    if PARTS:
        y_ptr += cut.to(gl.int64) * M * N
    _store(acc, y_ptr, x_scale_ptr, w_scale_ptr, stride, biases, bias_ptr, m0, n0, M, N, PARTS)


@gluon.jit
def _accumulated(
    ws,
    xs,
    rooms,
    first,
    last,
    K,
    FORM: gl.constexpr,
    STAGES: gl.constexpr,
    operand: gl.constexpr,
    flat: gl.constexpr,
):
    """Return the products of groups [first, last) and the sums of their activations."""
    bytes_in, x_in = rooms
    BLOCK_N: gl.constexpr = bytes_in.shape[1]
    BLOCK_M: gl.constexpr = x_in.shape[1]
    for s in gl.static_range(STAGES - 1):
        _fetch(ws, xs, bytes_in, x_in, s, first + s, last, K, flat)
    mma: gl.constexpr = operand.parent
    acc = gl.zeros((BLOCK_N, BLOCK_M), gl.int32, mma)
    sums = gl.zeros((BLOCK_M, BYTES), gl.int32, flat)
    now, free = 0, STAGES - 1
    for group in range(first, last):
        _wait(STAGES - 2)
        fence_async_shared()
        _barrier()
        byte = bytes_in.index(now).load(operand)
        for j in gl.static_range(4):
            x = x_in.index(4 * now + j).permute([1, 0])
            acc = warpgroup_mma(plane(byte, j, FORM), x, acc, is_async=True)
        for j in gl.static_range(4):
            sums = add_each(sums, x_in.index(4 * now + j).load(flat), FORM)
        _fetch(ws, xs, bytes_in, x_in, free, group + STAGES - 1, last, K, flat)
        free = now
        now = gl.where(now + 1 == STAGES, 0, now + 1)
        acc = warpgroup_mma_wait(0, deps=[acc])
    _wait(0)
    return acc, sums


@gluon.jit
def _corner(ptr, first, count, stride, ROWS: gl.constexpr, flat: gl.constexpr):
    """Return the addresses of 64 bytes of some rows; rows past the end repeat the last one."""
    row = gl.minimum(first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, flat)), count - 1)
    column = gl.arange(0, BYTES, layout=gl.SliceLayout(0, flat))
    return ptr + row.to(gl.int64)[:, None] * stride + column[None, :]


@gluon.jit
def _fetch(ws, xs, bytes_in, x_in, stage, group, last, K, flat: gl.constexpr):
    """Ask for the tiles of a group: zeros past K, and past the last group."""
    column = gl.arange(0, BYTES, layout=gl.SliceLayout(0, flat))
    here = group < last
    _copy(bytes_in.index(stage), ws + group * BYTES, mask=(here & (column < BYTES))[None, :])
    for j in gl.static_range(4):
        k = group * GROUP + j * BYTES
        mask = (here & (k + column < K))[None, :]
        _copy(x_in.index(4 * stage + j), xs + k, mask=mask)
    _commit()


@gluon.jit
def _store(
    acc,
    y_ptr,
    x_scale_ptr,
    w_scale_ptr,
    stride,
    biases,
    bias_ptr,
    m0,
    n0,
    M,
    N,
    PARTS: gl.constexpr,
):
    """Store sums [outputs, tokens], eight neighbouring outputs of a token by one thread."""
    BLOCK_N: gl.constexpr = acc.shape[0]
    BLOCK_M: gl.constexpr = acc.shape[1]
    lanes: gl.constexpr = BLOCK_N // 8
    wide: gl.constexpr = gl.BlockedLayout([8, 1], [lanes, 32 // lanes], [1, gl.num_warps()], [0, 1])
    acc = gl.convert_layout(acc, wide)
    m = m0 + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, wide))
    n = n0 + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, wide))
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = m.to(gl.int64)[None, :] * N + n[:, None]
    if PARTS:
        gl.store(y_ptr + at, acc, mask=inside)
    else:
        x_scale = gl.load(x_scale_ptr + m, mask=m < M, other=0.0)[None, :]
        w_scale = gl.load(w_scale_ptr + n * stride, mask=n < N, other=0.0)[:, None]
        y = real(acc, x_scale * w_scale, y_ptr.dtype.element_ty)
        if biases is not None:
            bias = gl.load(bias_ptr + n, mask=n < N, other=0.0)[:, None]
            y = biased(y, bias, y_ptr.dtype.element_ty)
        gl.store(y_ptr + at, y, mask=inside)
