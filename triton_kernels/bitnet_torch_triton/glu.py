"""Triton kernel of ``glu``. Contract: bitnet_torch/ops/glu.py.

The exp of silu follows the reference operation by operation, so silu too has its bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import glu as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.number import exp, rounded, widened

CONFIG = KernelConfig(block_k=1024)


@triton.jit
def load_row(x_ptr, u_ptr, at, inside, ACTIVATION: tl.constexpr):
    """Return elements of a row as float32: of x itself, or gated by ``ACTIVATION`` with u."""
    x = widened(tl.load(x_ptr + at, mask=inside, other=0.0))
    if ACTIVATION is None:
        return x
    else:
        u = widened(tl.load(u_ptr + at, mask=inside, other=0.0))
        dtype: tl.constexpr = x_ptr.dtype.element_ty
        acted = x * x if ACTIVATION == "relu2" else _silu(x)
        h = widened(rounded(widened(rounded(acted, dtype)) * u, dtype))
        if ACTIVATION == "relu2":
            h = tl.where(x > 0.0, h, tl.where(x != x, float("nan"), 0.0))
        return h


@triton.jit
def _silu(g):
    return tl.div_rn(g, 1.0 + exp(tl.where(g != g, 0.0, -g)))


@triton.jit
def _glu_kernel(
    g_ptr,  # float
    u_ptr,  # g's
    h_ptr,  # g's
    size,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    h = load_row(g_ptr, u_ptr, at, inside, ACTIVATION)
    # A rounding of what is rounded: exact.
    tl.store(h_ptr + at, rounded(h, h_ptr.dtype.element_ty), mask=inside)


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(g: Tensor, u: Tensor, activation: str) -> Tensor:
    g, u = g.contiguous(), u.contiguous()
    h = torch.empty(g.shape, dtype=g.dtype, device=g.device)
    programs = triton.cdiv(g.numel(), CONFIG.block_k)
    constants = {"ACTIVATION": activation, "BLOCK": CONFIG.block_k}
    launch(_glu_kernel, programs, CONFIG, g, u, h, g.numel(), **constants)
    return h
