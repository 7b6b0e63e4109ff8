"""Ternary products of nine tokens and more, on the integer matrix units.

Contract: bitnet_torch/ops/ternary_linear.py. 64 bytes of a row (planar64.py) are four tiles of
codes, which meet four tiles of activations in their natural order. The weights are the first
operand, whose rows the warps share out among themselves, so no code is unpacked twice; the
activations are the second, so 16 tokens are enough for the large matrix units of sm_90.

Where there are fewer tiles than a GPU can run, K is cut into parts (:func:`parts_for`). Each part
stores its int32 sums, and a second kernel adds these up: integers, so nothing depends on the cut.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.codes import APART, TWIN, WORDS, add_each, form_for, plane
from bitnet_torch_triton.policy import processors
from bitnet_torch_triton.ternary_matrix import biased, chosen, real

# Codes and bytes of a group.
GROUP = tl.constexpr(256)
BYTES = tl.constexpr(64)
# Groups of a part: fewer would not fill the pipeline of loads.
LEAST_GROUPS = 2
MOST_PARTS = 16
FINISH = KernelConfig(block_k=1024)


@triton.jit
def _ternary_gemm_kernel(
    x_ptr,  # (M, 16 K16) int8
    x_scale_ptr,  # (M,) float32
    matrices,  # see ternary_matrix.py; with PARTS, y is (parts, M, N) int32
    biases,  # see ternary_matrix.py
    M,
    K16,
    groups,
    part,  # groups of a part
    tiles,  # programs of a part
    FORM: tl.constexpr,
    BESIDE: tl.constexpr,  # the activations are summed in the loop of the product
    EVEN: tl.constexpr,  # rows are whole groups
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A program owns BLOCK_M tokens by BLOCK_N outputs of one matrix (of one part of K), and no two
    own an output in common. Rows and tokens past the end repeat the last one: they are read
    where memory is, and never stored. Activations past K are masked to 0, unless EVEN."""
    across, cut = tl.cdiv(M, BLOCK_M), tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    own = chosen(matrices, biases, tile // across, BLOCK_N)
    codes, w_scale_ptr, stride, bias_ptr, y_ptr, N, block = own
    m = (tile % across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    column, K = tl.arange(0, BYTES), K16 * 16
    first, last = cut * part, tl.minimum(cut * part + part, groups)
    ws = codes + _row(n, N, groups * BYTES)[:, None] + (first * BYTES + column)[None, :]
    xs = x_ptr + _row(m, M, K)[None, :] + (first * GROUP + column)[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    sums = tl.zeros((BYTES, BLOCK_M), dtype=tl.int32)
    for group in tl.range(first, last, num_stages=STAGES):
        acc, sums = _products(acc, sums, tl.load(ws), xs, group, K, FORM, BESIDE, EVEN)
        ws += BYTES
        xs += GROUP
    total = tl.sum(sums, axis=0)
    if FORM == APART:
        total = _sums(x_ptr, m, M, first * GROUP, last * GROUP, K, BLOCK_M)
    y = tl.trans(acc - total[None, :])
    if not PARTS:
        y = _numbers(y, x_scale_ptr, w_scale_ptr, stride, biases, bias_ptr, m, n, M, N, y_ptr)
    at = (cut.to(tl.int64) * M + m)[:, None] * N + n[None, :]
    tl.store(y_ptr + at, y, mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def _row(i, count, stride):
    """Return where rows begin; those past the end repeat the last one."""
    return tl.minimum(i, count - 1).to(tl.int64) * stride


@triton.jit
def _products(
    acc, sums, byte, xs, group, K, FORM: tl.constexpr, BESIDE: tl.constexpr, EVEN: tl.constexpr
):
    """Add the products of a group's four planes, and its activations."""
    k = group * GROUP + tl.arange(0, BYTES)
    for j in tl.static_range(4):
        if EVEN:
            x = tl.load(xs + j * BYTES)
        else:
            x = tl.load(xs + j * BYTES, mask=(k + j * BYTES < K)[:, None], other=0)
        acc = tl.dot(plane(byte, j, FORM), x, acc, out_dtype=tl.int32)
        if BESIDE:
            sums = add_each(sums, x, FORM)
    return acc, sums


@triton.jit
def _sums(x_ptr, m, M, start, end, K, BLOCK_M: tl.constexpr):
    """Return the sum of each token's activations in a part of K."""
    token = x_ptr + _row(m, M, K)[:, None]
    sums = tl.zeros((BLOCK_M, BYTES), dtype=tl.int32)
    for k0 in range(start, end, BYTES):
        k = k0 + tl.arange(0, BYTES)[None, :]
        sums = add_each(sums, tl.load(token + k, mask=k < K, other=0), APART)
    return tl.sum(sums, axis=1)


@triton.jit
def _numbers(acc, x_scale_ptr, w_scale_ptr, stride, biases, bias_ptr, m, n, M, N, y_ptr):
    """Return what the sums [tokens, outputs] stand for."""
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)[:, None]
    w_scale = tl.load(w_scale_ptr + n * stride, mask=n < N, other=0.0)[None, :]
    y = real(acc, x_scale * w_scale, y_ptr.dtype.element_ty)
    if biases is not None:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0)[None, :]
        y = biased(y, bias, y_ptr.dtype.element_ty)
    return y


@triton.jit
def _finish_parts_kernel(
    x_scale_ptr,  # (M,) float32
    matrices,  # see ternary_matrix.py, with sums (parts, M, N) int32 for the codes
    biases,  # see ternary_matrix.py
    M,
    parts,
    BLOCK_N: tl.constexpr,
):
    """A program owns BLOCK_N outputs of one token and adds up their parts."""
    m = tl.program_id(0) % M
    sums, w_scale_ptr, stride, bias_ptr, y_ptr, N, block = chosen(
        matrices, biases, tl.program_id(0) // M, BLOCK_N
    )
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.cast(M, tl.int64) * N
    at = m.to(tl.int64) * N + n
    acc = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for _ in range(parts):
        acc += tl.load(sums + at, mask=n < N, other=0)
        sums += step
    token = m + tl.arange(0, 1)
    y = _numbers(
        *(acc[None, :], x_scale_ptr, w_scale_ptr, stride, biases, bias_ptr),
        *(token, n, M, N, y_ptr),
    )
    tl.store(y_ptr + at[None, :], y, mask=(n < N)[None, :])


def parts_for(tiles: int, groups: int, processors: int) -> int:
    """Return into how many parts to cut K.

    Args:
        tiles: Programs without a cut.
        groups: Of 256 columns each.
        processors: Multiprocessors of the GPU; a cut shall fill them, and no more.
    """
    return max(1, min(processors // tiles, groups // LEAST_GROUPS, MOST_PARTS))


Matrix = tuple[Any, ...]


def gemm(
    name: str,
    config: KernelConfig,
    arch: str,
    x: Tensor,
    x_scale: Tensor,
    matrices: tuple[Matrix, ...],
    biases: tuple[Tensor, ...] | None,
    groups: int,
    parts: int | None = None,
) -> Any:
    """Multiply by every matrix, over parts of K where the tiles are few.

    Returns the compiled kernel of the product; None in the interpreter.

    Args:
        name: ``"gemm"``, or ``"wgmma"`` where sm_90 is at hand.
        config: How it is launched.
        arch: Architecture of the device, or ``"interpreter"``.
        x: (M, K) int8 with K a multiple of 16, contiguous, at an address that is one too.
        x_scale: (M,) float32.
        matrices: As in ternary_matrix.py.
        biases: Of each, or None.
        groups: Of a row of codes.
        parts: Of K; None to decide here.
    """
    m, k = x.shape
    tiles = triton.cdiv(m, config.block_m) * sum(
        triton.cdiv(matrix[4], config.block_n) for matrix in matrices
    )
    parts = parts or parts_for(tiles, groups, processors(x.device))
    part = max(1, triton.cdiv(groups, parts))
    # Rounding up may leave the last parts with nothing to do.
    parts = max(1, triton.cdiv(groups, part))
    outs = matrices if parts == 1 else _with_sums(matrices, parts, m, x.device)
    sizes = (m, k // 16, groups, part, tiles)
    constants = constants_of(config, arch, k % GROUP.value == 0, parts > 1)
    arguments = (x, x_scale, outs, None if parts > 1 else biases, *sizes)
    compiled = launch(kernel_of(name), tiles * parts, config, *arguments, **constants)
    if parts > 1:
        sums = tuple((out[3], *matrix[1:]) for out, matrix in zip(outs, matrices, strict=True))
        programs = m * sum(triton.cdiv(matrix[4], FINISH.block_k) for matrix in matrices)
        finish = (x_scale, sums, biases, m, parts)
        launch(_finish_parts_kernel, programs, FINISH, *finish, BLOCK_N=FINISH.block_k)
    return compiled


def constants_of(config: KernelConfig, arch: str, even: bool, parts: bool) -> dict[str, Any]:
    """Return the compile-time arguments of a product on ``arch``."""
    form = form_for(arch)
    return {
        "FORM": form,
        "BESIDE": form in (WORDS.value, TWIN.value),
        "EVEN": even,
        "PARTS": parts,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "STAGES": config.num_stages,
    }


def _with_sums(
    matrices: tuple[Matrix, ...], parts: int, m: int, device: torch.device
) -> tuple[Matrix, ...]:
    """Return the matrices with room for the sums of all parts in the place of their outputs."""
    found = []
    for codes, w_scale, stride, _, n in matrices:
        sums = torch.empty((parts, m, n), dtype=torch.int32, device=device)
        found.append((codes, w_scale, stride, sums, n))
    return tuple(found)


def kernel_of(name: str) -> triton.JITFunction:
    """Return the kernel that a rule names."""
    if name == "gemm":
        return _ternary_gemm_kernel
    # Here and not at the top: Gluon is not for the interpreter.
    from bitnet_torch_triton.ternary_wgmma import _ternary_wgmma_kernel

    return _ternary_wgmma_kernel
