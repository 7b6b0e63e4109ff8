"""Triton kernels of ``pack_codes`` and ``unpack_codes``. Contract: bitnet_torch/ops/pack_codes.py.

Byte i of the flat packed matrix holds elements i, i + R*K, i + 2*R*K and i + 3*R*K of the
flat codes, so neither kernel divides by K. A bad code sets a flag; the ops' own helper then
finds it and names it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import pack_codes, unpack_codes
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.pack_codes import raise_if_corrupt, raise_if_not_ternary
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import KernelConfig, launch

CONFIG = KernelConfig(block_k=1024)


@triton.jit
def _pack_codes_kernel(
    t_ptr,  # (N, K) int8
    packed_ptr,  # (R, K) uint8
    flag_ptr,  # () int32, 0
    code_count,  # N * K
    byte_count,  # R * K
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    packed = tl.zeros((BLOCK,), dtype=tl.int32)
    bad = tl.zeros((BLOCK,), dtype=tl.int32)
    for j in tl.static_range(4):
        at = i + j * byte_count
        # Rows past N hold code 1.
        t = tl.load(t_ptr + at, mask=(i < byte_count) & (at < code_count), other=0).to(tl.int32)
        bad |= ((t < -1) | (t > 1)).to(tl.int32)
        packed |= (t + 1) << (2 * j)
    tl.store(packed_ptr + i, packed.to(tl.uint8), mask=i < byte_count)
    # Every program that stores, stores the same.
    tl.store(flag_ptr, 1, mask=tl.max(bad, axis=0) > 0)


@triton.jit
def _unpack_codes_kernel(
    packed_ptr,  # (R, K) uint8
    t_ptr,  # (N, K) int8
    flag_ptr,  # () int32, 0
    code_count,  # N * K
    byte_count,  # R * K
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    packed = tl.load(packed_ptr + i, mask=i < byte_count, other=0).to(tl.int32)
    for j in tl.static_range(4):
        at = i + j * byte_count
        t = ((packed >> (2 * j)) & 3) - 1
        tl.store(t_ptr + at, t.to(tl.int8), mask=(i < byte_count) & (at < code_count))
    bad = packed & (packed >> 1) & 0b01_01_01_01
    tl.store(flag_ptr, 1, mask=tl.max(bad, axis=0) > 0)


@implement(pack_codes, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch_pack(t: Tensor) -> Tensor:
    t = t.contiguous()
    n, k = t.shape
    packed = torch.empty((-(-n // 4), k), dtype=torch.uint8, device=t.device)
    bad = _launch(_pack_codes_kernel, t, packed, t.numel(), packed.numel())
    raise_if_not_ternary(t, bad)
    return packed


@implement(unpack_codes, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch_unpack(packed: Tensor, N: int) -> Tensor:
    packed = packed.contiguous()
    t = torch.empty((N, packed.shape[1]), dtype=torch.int8, device=packed.device)
    bad = _launch(_unpack_codes_kernel, packed, t, t.numel(), packed.numel())
    raise_if_corrupt(packed, bad)
    return t


def _launch(
    kernel: triton.JITFunction, source: Tensor, out: Tensor, code_count: int, byte_count: int
) -> bool:
    """Run one of the kernels and return whether it met a bad code."""
    flag = torch.zeros((), dtype=torch.int32, device=source.device)
    programs = triton.cdiv(byte_count, CONFIG.block_k)
    sizes = (code_count, byte_count)
    launch(kernel, programs, CONFIG, source, out, flag, *sizes, BLOCK=CONFIG.block_k)
    return bool(flag)
