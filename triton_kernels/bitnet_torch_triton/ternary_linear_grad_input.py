"""Triton kernel of ``ternary_linear_grad_input``.

Contract: bitnet_torch/ops/ternary_linear_grad_input.py.

A program owns a tile of dx and walks the bytes of its columns, as the forward product does: a
tile of bytes is four tiles of codes, which meet four tiles of the gradient on the matrix units
(bf16_parts.py). It adds up alone, in an order that the number of tokens has no part in. The scale
of a matrix is one factor, multiplied at the end; those of rows are multiplied into the gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import ternary_linear_grad_input as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted, interpreted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.bf16_parts import code, dots, parts
from bitnet_torch_triton.number import rounded, widened

# By the parts of the gradient: more of them, and the scales of rows, take more registers.
CONFIGS = {
    1: KernelConfig(block_m=64, block_k=128, block_r=32, num_warps=8),
    2: KernelConfig(block_m=64, block_k=128, block_r=32, num_warps=8),
    3: KernelConfig(block_m=32, block_k=64, block_r=16, num_warps=4),
}


def parts_of(dtype: torch.dtype, per_row: bool) -> int:
    """Return how many parts the gradient has that meets the codes."""
    plain = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
    return 3 if per_row else plain[dtype]


@triton.jit
def _grad_input_kernel(
    grad_ptr,  # (M, N) float
    packed_ptr,  # (R, K) uint8
    w_scale_ptr,  # () or (N,) float32
    dx_ptr,  # (M, K) float
    M,
    N,
    K,
    R,
    PER_ROW: tl.constexpr,
    PARTS: tl.constexpr,
    MATRIX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    across = tl.cdiv(M, BLOCK_M)
    m = (tl.program_id(0) % across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = (tl.program_id(0) // across).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    dx = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
    for r0 in range(0, R, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R).to(tl.int64)
        inside = (r[:, None] < R) & (k[None, :] < K)
        byte = tl.load(packed_ptr + r[:, None] * K + k[None, :], mask=inside, other=0b01_01_01_01)
        for j in tl.static_range(4):
            n = r + j * R
            present = (r < R) & (n < N)
            at = m[:, None] * N + n[None, :]
            grad = tl.load(grad_ptr + at, mask=(m[:, None] < M) & present[None, :], other=0.0)
            if PER_ROW:
                scale = tl.load(w_scale_ptr + n, mask=present, other=0.0)[None, :]
                grad = widened(grad) * scale
            dx = dots(parts(grad, PARTS, MATRIX), code((byte >> (2 * j)) & 3, MATRIX), dx, PARTS)
    if not PER_ROW:
        dx *= tl.load(w_scale_ptr)
    out = rounded(dx, dx_ptr.dtype.element_ty)
    tl.store(dx_ptr + m[:, None] * K + k[None, :], out, mask=(m[:, None] < M) & (k[None, :] < K))


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(grad: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    *rows, n = grad.shape
    r, k = packed.shape
    dx = torch.empty((*rows, k), dtype=dtype, device=grad.device)
    if not n:
        # There need not be a scale to read either.
        return dx.zero_()
    m, per_row = torch.Size(rows).numel(), w_scale.numel() > 1
    count = parts_of(grad.dtype, per_row)
    config = CONFIGS[count]
    programs = triton.cdiv(m, config.block_m) * triton.cdiv(k, config.block_k)
    launch(
        _grad_input_kernel,
        programs,
        config,
        *(grad.contiguous(), packed.contiguous(), w_scale.contiguous(), dx),
        *(m, n, k, r),
        PER_ROW=per_row,
        PARTS=count,
        MATRIX=not interpreted(),
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        BLOCK_R=config.block_r,
    )
    return dx
