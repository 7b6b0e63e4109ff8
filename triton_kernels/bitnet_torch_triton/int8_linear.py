"""Triton kernel of ``int8_linear``. Contract: bitnet_torch/ops/int8_linear.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import int8_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import rounded

# Bytes are loaded one by one behind their masks: a larger tile spills on sm_80.
CONFIG = KernelConfig(block_m=16, block_r=32, block_k=64)


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
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = tl.cdiv(M, BLOCK_M)
    m = (tl.program_id(0) % across).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.int32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + column
        in_x = (m[:, None] < M) & (k[None, :] < K)
        in_h = (n[None, :] < N) & (k[:, None] < K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=in_x, other=0)
        h = tl.load(h_ptr + n[None, :] * K + k[:, None], mask=in_h, other=0)
        acc = tl.dot(x, h, acc, out_dtype=tl.int32)
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    h_scale = tl.load(h_scale_ptr + n, mask=n < N, other=0.0)
    y = rounded(acc.to(tl.float32) * (x_scale[:, None] * h_scale[None, :]), y_ptr.dtype.element_ty)
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
    m = x_scale.numel()
    launch(
        _int8_linear_kernel,
        triton.cdiv(m, CONFIG.block_m) * triton.cdiv(n, CONFIG.block_r),
        CONFIG,
        x_q.contiguous(),
        x_scale.contiguous(),
        h.contiguous(),
        h_scale.contiguous(),
        y,
        m,
        n,
        k,
        BLOCK_M=CONFIG.block_m,
        BLOCK_R=CONFIG.block_r,
        BLOCK_K=CONFIG.block_k,
    )
    return y
