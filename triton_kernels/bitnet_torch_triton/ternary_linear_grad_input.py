"""Triton kernel of ``ternary_linear_grad_input``.

Contract: bitnet_torch/ops/ternary_linear_grad_input.py.

A program owns a tile of dx and walks the bytes of its columns, as the forward product does: a
tile of bytes is four tiles of codes, which meet four tiles of the gradient. It adds up alone,
so the order of a sum is that of the walk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import ternary_linear_grad_input as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import rounded, widened

CONFIG = KernelConfig(block_m=64, block_k=64, block_r=16)


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
                w_scale = tl.load(w_scale_ptr + n, mask=present, other=0.0)[None, :]
            else:
                w_scale = tl.load(w_scale_ptr)
            t = ((byte >> (2 * j)) & 3).to(tl.float32) - 1.0
            dx = tl.dot(widened(grad) * w_scale, t, dx, input_precision="ieee")
    out = rounded(dx, dx_ptr.dtype.element_ty)
    tl.store(dx_ptr + m[:, None] * K + k[None, :], out, mask=(m[:, None] < M) & (k[None, :] < K))


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(grad: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    *rows, n = grad.shape
    r, k = packed.shape
    dx = torch.empty((*rows, k), dtype=dtype, device=grad.device)
    m = torch.Size(rows).numel()
    programs = triton.cdiv(m, CONFIG.block_m) * triton.cdiv(k, CONFIG.block_k)
    launch(
        _grad_input_kernel,
        programs,
        CONFIG,
        *(grad.contiguous(), packed.contiguous(), w_scale.contiguous(), dx),
        *(m, n, k, r),
        PER_ROW=w_scale.numel() > 1,
        BLOCK_M=CONFIG.block_m,
        BLOCK_K=CONFIG.block_k,
        BLOCK_R=CONFIG.block_r,
    )
    return dx
