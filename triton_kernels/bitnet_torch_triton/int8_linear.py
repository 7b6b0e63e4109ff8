"""Triton kernels of ``int8_linear``. Contract: bitnet_torch/ops/int8_linear.py.

Up to eight tokens the head is read once, sixteen bytes a load, and multiplied by dot products of
four bytes, as a decode step waits for memory. More tokens meet it in tiles on the integer matrix
units. Both take rows whose sixteens lie at multiples of 16; tiles take any others, too.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import int8_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.dot4 import dot4, dot_for
from bitnet_torch_triton.lanes import ahead, four_words
from bitnet_torch_triton.policy import INTERPRETER, arch_of
from bitnet_torch_triton.ternary_matrix import real

EVEN = KernelConfig(block_m=32, block_r=64, block_k=64, num_stages=4)
# Bytes are loaded one by one behind their masks: a larger tile spills on sm_80.
RAGGED = KernelConfig(block_m=16, block_r=32, block_k=64)
FEW = 8
WIDTH = 16


def few_config(tokens: int, arch: str) -> KernelConfig:
    """Return the configuration for a few tokens: rows of a lane share the activations it loads."""
    if arch == INTERPRETER:
        return KernelConfig(block_n=32, rows=1, block_k=512)
    rows = 4 if tokens <= 4 else 2
    lanes = 64 if arch.startswith("gfx9") else 32
    return KernelConfig(block_n=4 * rows, rows=rows, block_k=WIDTH * lanes, unroll=2)


def few_constants(tokens: int, config: KernelConfig, dot: str) -> dict[str, Any]:
    """Return the compile-time arguments, which tell powers of two of tokens apart."""
    return {
        "TOKENS": triton.next_power_of_2(tokens),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "ROWS": config.rows,
        "UNROLL": config.unroll,
        "DOT": dot,
    }


@triton.jit
def _int8_few_kernel(
    x_ptr,  # (M, 16 K16) int8
    x_scale_ptr,  # (M,) float32
    h_ptr,  # (N, 16 K16) int8
    h_scale_ptr,  # (N,) float32
    y_ptr,  # (M, N)
    M,
    N,
    K16,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
    DOT: tl.constexpr,
):
    """A program owns BLOCK_N outputs of every token. Rows past N and tokens past M repeat the last
    one and are not stored; the words past K of the last turn count as 0."""
    DOWN: tl.constexpr = BLOCK_N // ROWS
    TURN: tl.constexpr = BLOCK_K // 4  # words
    words, n0 = K16 * 4, tl.program_id(0).to(tl.int64) * BLOCK_N
    down = tl.arange(0, DOWN)[:, None, None]
    lane = tl.arange(0, BLOCK_K // 16)[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    at = lane + down * 0
    xs, hs = (), ()
    for m in tl.static_range(TOKENS):
        x = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        xs = xs + (x + tl.minimum(m, M - 1).to(tl.int64) * words + at,)
    for r in tl.static_range(ROWS):
        row = tl.minimum(n0 + r * DOWN + down, N - 1)
        hs = hs + (h_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + row * words + at,)
    acc = (tl.zeros((DOWN, BLOCK_K // 16), dtype=tl.int32),) * (TOKENS * ROWS)
    for _ in tl.range(0, words // TURN, loop_unroll_factor=UNROLL):
        acc = _few_turn(acc, xs, hs, at, None, DOT)
        xs, hs = ahead(xs, TURN), ahead(hs, TURN)
    done = words // TURN * TURN
    if done < words:
        acc = _few_turn(acc, xs, hs, at, words - done, DOT)
    for r in tl.static_range(ROWS):
        n = n0 + r * DOWN + tl.arange(0, DOWN)
        h_scale = tl.load(h_scale_ptr + n, mask=n < N, other=0.0)
        for m in tl.static_range(TOKENS):
            total = tl.sum(acc[r * TOKENS + m], axis=1)
            _store(y_ptr, total, x_scale_ptr, h_scale, m, n, M, N)


@triton.jit
def _store(y_ptr, total, x_scale_ptr, h_scale, m: tl.constexpr, n, M, N):
    # M may be a constant, and then the plain comparison no tensor.
    inside = (n < N) & (n * 0 + m < M)
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    y = real(total, x_scale * h_scale, y_ptr.dtype.element_ty)
    tl.store(y_ptr + tl.cast(m, tl.int64) * N + n, y, mask=inside)


@triton.jit
def _few_turn(acc, xs, hs, at, end, DOT: tl.constexpr):
    """Add the products of a 16-byte load of each row with one of each token."""
    x = ()
    for m in tl.static_range(len(xs)):
        x = x + (four_words(xs[m], at, end, 0),)
    out = ()
    for r in tl.static_range(len(hs)):
        h = four_words(hs[r], at, end, 0)
        for m in tl.static_range(len(xs)):
            total = acc[r * len(xs) + m]
            for i in tl.static_range(4):
                total = dot4(h[i], x[m][i], total, DOT, True)
            out = out + (total,)
    return out


@triton.jit
def _int8_linear_kernel(
    x_ptr,  # (M, K) int8
    x_scale_ptr,  # (M,) float32
    h_ptr,  # (N, K) int8
    h_scale_ptr,  # (N,) float32
    y_ptr,  # (M, N)
    M,
    N,
    K,
    EVEN: tl.constexpr,  # rows are whole blocks of K
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program owns a tile of outputs; rows and tokens past the end repeat the last one."""
    across = tl.cdiv(M, BLOCK_M)
    m = (tl.program_id(0) % across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_K)
    xs = x_ptr + tl.minimum(m, M - 1)[:, None] * K + column[None, :]
    hs = h_ptr + tl.minimum(n, N - 1)[None, :] * K + column[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.int32)
    for k0 in range(0, K, BLOCK_K):
        if EVEN:
            x, h = tl.load(xs), tl.load(hs)
        else:
            inside = k0 + column < K
            x = tl.load(xs, mask=inside[None, :], other=0)
            h = tl.load(hs, mask=inside[:, None], other=0)
        acc = tl.dot(x, h, acc, out_dtype=tl.int32)
        xs += BLOCK_K
        hs += BLOCK_K
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    h_scale = tl.load(h_scale_ptr + n, mask=n < N, other=0.0)
    y = real(acc, x_scale[:, None] * h_scale[None, :], y_ptr.dtype.element_ty)
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(y_ptr + m[:, None] * N + n[None, :], y, mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def multiply(
    x_q: Tensor, x_scale: Tensor, h: Tensor, h_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute the op; see its contract."""
    n, k = h.shape
    y = torch.empty((*x_q.shape[:-1], n), dtype=dtype, device=x_q.device)
    if not y.numel():
        return y
    x_q, h = x_q.contiguous(), h.contiguous()
    tensors = (x_q, x_scale.contiguous(), h, h_scale.contiguous(), y)
    m = x_scale.numel()
    aligned = not (k % WIDTH or x_q.data_ptr() % WIDTH or h.data_ptr() % WIDTH)
    if aligned and m <= FEW:
        _launch_few(tensors, m, n, k)
    else:
        _launch_tiles(tensors, m, n, k, aligned and k % EVEN.block_k == 0)
    return y


def _launch_few(tensors: tuple[Tensor, ...], m: int, n: int, k: int) -> None:
    arch = arch_of(tensors[0].device)
    config = few_config(m, arch)
    constants = few_constants(m, config, dot_for(arch))
    programs = triton.cdiv(n, config.block_n)
    launch(_int8_few_kernel, programs, config, *tensors, m, n, k // WIDTH, **constants)


def _launch_tiles(tensors: tuple[Tensor, ...], m: int, n: int, k: int, even: bool) -> None:
    config = EVEN if even else RAGGED
    programs = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_r)
    launch(
        _int8_linear_kernel,
        programs,
        config,
        *tensors,
        *(m, n, k),
        EVEN=even,
        BLOCK_M=config.block_m,
        BLOCK_R=config.block_r,
        BLOCK_K=config.block_k,
    )
