"""Triton kernel of ``ternary_linear_grad_weight``.

Contract: bitnet_torch/ops/ternary_linear_grad_weight.py.

A program owns a tile of dw and walks the tokens alone: no two programs add to one element, so
nothing depends on who comes first. A token's scale is multiplied into its gradient, whose parts
then meet the int8 activations on the matrix units (bf16_parts.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import ternary_linear_grad_weight as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted, interpreted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.bf16_parts import dots, parts, whole
from bitnet_torch_triton.number import INFINITY, magnitude, rounded, widened

# block_r counts rows of dw here.
CONFIG = KernelConfig(block_r=64, block_k=128, block_m=32, num_warps=8)
PARTS = tl.constexpr(3)
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def _grad_weight_kernel(
    grad_ptr,  # (M, N) float
    x_ptr,  # (M, K) int8
    x_scale_ptr,  # (M,) float32
    dw_ptr,  # (N, K) float
    M,
    N,
    K,
    MATRIX: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    across = tl.cdiv(N, BLOCK_R)
    n = (tl.program_id(0) % across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = (tl.program_id(0) // across).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    dw = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
    for m0 in range(0, M, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M).to(tl.int64)
        at = m[None, :] * N + n[:, None]
        grad = tl.load(grad_ptr + at, mask=(m[None, :] < M) & (n[:, None] < N), other=0.0)
        inside = (m[:, None] < M) & (k[None, :] < K)
        x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=inside, other=0)
        x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
        scaled = _scaled(widened(grad), x_scale[None, :])
        dw = dots(parts(scaled, PARTS, MATRIX), whole(x, MATRIX), dw, PARTS)
    out = rounded(dw, dw_ptr.dtype.element_ty)
    tl.store(dw_ptr + n[:, None] * K + k[None, :], out, mask=(n[:, None] < N) & (k[None, :] < K))


@triton.jit
def _scaled(grad, x_scale):
    """Return their product. One too large for float32 is the largest number there is: it may meet
    an activation of 0, which infinity must not."""
    product = grad * x_scale
    over = (magnitude(product) == INFINITY) & (magnitude(grad) < INFINITY)
    return tl.where(over, tl.where(product > 0, LARGEST, -LARGEST), product)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(grad: Tensor, x_q: Tensor, x_scale: Tensor, dtype: torch.dtype) -> Tensor:
    n, k, m = grad.shape[-1], x_q.shape[-1], x_scale.numel()
    dw = torch.empty((n, k), dtype=dtype, device=grad.device)
    programs = triton.cdiv(n, CONFIG.block_r) * triton.cdiv(k, CONFIG.block_k)
    launch(
        _grad_weight_kernel,
        programs,
        CONFIG,
        *(grad.contiguous(), x_q.contiguous(), x_scale.contiguous(), dw),
        *(m, n, k),
        MATRIX=not interpreted(),
        BLOCK_R=CONFIG.block_r,
        BLOCK_K=CONFIG.block_k,
        BLOCK_M=CONFIG.block_m,
    )
    return dw
