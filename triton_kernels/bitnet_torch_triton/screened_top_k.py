"""Triton launcher of ``screened_top_k``. Contract: bitnet_torch/ops/screened_top_k.py.

First version: int8 scores, the candidates as a mask made by PyTorch's own operations, and a kernel
with ``float_linear``'s tiles that skips a tile without a candidate. Nothing waits for the device.
The norms of x are summed by PyTorch in float64, so ``rescored`` may differ from the CPU's count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import screened_top_k as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.screened_top_k import LEAST, SCORE_ERROR, SLACK, intervals
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import launch
from bitnet_torch_triton.float_linear import CONFIG, float_tile
from bitnet_torch_triton.int8_linear import multiply
from bitnet_torch_triton.quantize_rows import quantize_rows
from bitnet_torch_triton.top_k import choose


@triton.jit
def _rescore_kernel(
    x_ptr,  # (M, K) float
    w_ptr,  # (N, K) float
    wanted_ptr,  # (M, N) bool
    y_ptr,  # (M, N) float32; what is not wanted stays as it is
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
    at = m[:, None] * N + n[None, :]
    inside = (m[:, None] < M) & (n[None, :] < N)
    wanted = tl.load(wanted_ptr + at, mask=inside, other=0).to(tl.int32)
    if tl.sum(tl.sum(wanted, axis=1), axis=0) > 0:
        y = float_tile(x_ptr, w_ptr, m, n, M, N, K, BLOCK_M, BLOCK_R, BLOCK_K)
        tl.store(y_ptr + at, y, mask=inside & (wanted != 0))


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    x: Tensor, weight: Tensor, h: Tensor, h_scale: Tensor, bounds: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    x_q, x_scale = quantize_rows(x)
    s = multiply(x_q, x_scale, h, h_scale, torch.float32)
    if k == 0:
        wanted = torch.zeros_like(s, dtype=torch.bool)
    else:
        low, high = intervals(s, *_token_bounds(x, x_q, x_scale), bounds)
        wanted = high >= choose(low, None, k)[0][..., -1:]
    logits = torch.zeros_like(s)
    _rescore(x, weight, wanted, logits)
    return *choose(logits, wanted, k), wanted.sum(-1)


def _token_bounds(x: Tensor, x_q: Tensor, x_scale: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.float64)
    off = (wide - x_q.to(torch.float64) * x_scale[..., None].to(torch.float64)).norm(dim=-1)
    size = wide.norm(dim=-1)
    pair = (size * SLACK, (off + SCORE_ERROR * (size + off)) * SLACK)
    a, b = (value.to(torch.float32).clamp_min(LEAST) for value in pair)
    return a, b


def _rescore(x: Tensor, weight: Tensor, wanted: Tensor, logits: Tensor) -> None:
    if not logits.numel():
        return
    n, k = weight.shape
    m = x.shape[:-1].numel()
    launch(
        _rescore_kernel,
        triton.cdiv(m, CONFIG.block_m) * triton.cdiv(n, CONFIG.block_r),
        CONFIG,
        x.contiguous(),
        weight.contiguous(),
        wanted,
        logits,
        m,
        n,
        k,
        BLOCK_M=CONFIG.block_m,
        BLOCK_R=CONFIG.block_r,
        BLOCK_K=CONFIG.block_k,
    )
