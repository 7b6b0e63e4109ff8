"""Triton kernel of ``float_linear``. Contract: bitnet_torch/ops/float_linear.py.

One tile for any number of tokens, and float32 products without tensor cores: so an output is
the same sum, in an order of K only, whatever stands beside it in the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import float_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import rounded, widened

CONFIG = KernelConfig(block_m=16, block_r=32, block_k=32)


@triton.jit
def float_tile(
    x_ptr,
    w_ptr,
    m,
    n,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the float32 sums [BLOCK_M, BLOCK_R] of tokens ``m`` and weight rows ``n``."""
    column = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + column
        in_x = (m[:, None] < M) & (k[None, :] < K)
        in_w = (n[None, :] < N) & (k[:, None] < K)
        x = widened(tl.load(x_ptr + m[:, None] * K + k[None, :], mask=in_x, other=0.0))
        w = widened(tl.load(w_ptr + n[None, :] * K + k[:, None], mask=in_w, other=0.0))
        acc = tl.dot(x, w, acc, input_precision="ieee")
    return acc


@triton.jit
def _float_linear_kernel(
    x_ptr,  # (M, K) float
    w_ptr,  # (N, K) float
    bias_ptr,  # (N,) float or None
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
    acc = float_tile(x_ptr, w_ptr, m, n, M, N, K, BLOCK_M, BLOCK_R, BLOCK_K)
    if bias_ptr is not None:
        acc += widened(tl.load(bias_ptr + n, mask=n < N, other=0.0))[None, :]
    y = rounded(acc, y_ptr.dtype.element_ty)
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(y_ptr + m[:, None] * N + n[None, :], y, mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    n, k = weight.shape
    y = torch.empty((*x.shape[:-1], n), dtype=dtype or x.dtype, device=x.device)
    if not y.numel():
        return y
    m = x.shape[:-1].numel()
    launch(
        _float_linear_kernel,
        triton.cdiv(m, CONFIG.block_m) * triton.cdiv(n, CONFIG.block_r),
        CONFIG,
        x.contiguous(),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        y,
        m,
        n,
        k,
        BLOCK_M=CONFIG.block_m,
        BLOCK_R=CONFIG.block_r,
        BLOCK_K=CONFIG.block_k,
    )
    return y
