"""Triton launcher of ``screened_top_k``. Contract: bitnet_torch/ops/screened_top_k.py.

First version: int8 scores, the candidates as a mask made by PyTorch's own operations, and a kernel
with ``float_linear``'s sums for each few rows among which there is a candidate. Nothing waits for
the device. The norms of x are summed by PyTorch in float64, so ``rescored`` may differ from the
CPU's count.
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
from bitnet_torch_triton.float_linear import (
    config_for,
    constants_of,
    float_sums,
    outputs_of,
    place_of,
    programs_of,
)
from bitnet_torch_triton.int8_linear import multiply
from bitnet_torch_triton.policy import arch_of
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
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    m0, n0 = place_of(M, TOKENS, BLOCK_N)
    DOWN: tl.constexpr = BLOCK_N // ROWS
    count = tl.zeros((DOWN,), dtype=tl.int32)
    for r in tl.static_range(ROWS):
        for i in tl.static_range(TOKENS):
            _, at, inside = outputs_of(m0, n0, M, N, r, i, DOWN)
            count += tl.load(wanted_ptr + at, mask=inside, other=0).to(tl.int32)
    if tl.sum(count, axis=0) > 0:
        sums = float_sums(x_ptr, w_ptr, m0, n0, M, N, K, TOKENS, BLOCK_N, BLOCK_K, ROWS, UNROLL)
        for r in tl.static_range(ROWS):
            for i in tl.static_range(TOKENS):
                _, at, inside = outputs_of(m0, n0, M, N, r, i, DOWN)
                wanted = tl.load(wanted_ptr + at, mask=inside, other=0) != 0
                tl.store(y_ptr + at, sums[r * TOKENS + i], mask=wanted)


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
    config = config_for(m, arch_of(x.device))
    constants = constants_of(m, k, config)
    tensors = (x.contiguous(), weight.contiguous(), wanted, logits)
    programs = programs_of(m, n, constants)
    launch(_rescore_kernel, programs, config, *tensors, m, n, k, **constants)
