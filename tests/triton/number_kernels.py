"""Kernels that apply one function of number.py to every element of a tensor."""

import triton
import triton.language as tl

from bitnet_torch_triton import number
from bitnet_torch_triton._launch import KernelConfig, launch

CONFIG = KernelConfig(block_k=1 << 15)


@triton.jit
def _round_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = number.rounded(tl.load(x_ptr + i, mask=i < size, other=0.0), y_ptr.dtype.element_ty)
    tl.store(y_ptr + i, y, mask=i < size)


@triton.jit
def _widen_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = number.widened(tl.load(x_ptr + i, mask=i < size, other=0.0))
    tl.store(y_ptr + i, y, mask=i < size)


@triton.jit
def _nearest_kernel(v_ptr, signed_ptr, unsigned_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(v_ptr + i, mask=i < size, other=0.0)
    tl.store(signed_ptr + i, number.nearest(v), mask=i < size)
    tl.store(unsigned_ptr + i, number.nearest_unsigned(v), mask=i < size)


def round_all(x, y):
    return _run(_round_kernel, x, y)


def widen_all(x, y):
    return _run(_widen_kernel, x, y)


def nearest_all(v, signed, unsigned):
    _run(_nearest_kernel, v, signed, unsigned)
    return signed, unsigned


def _run(kernel, *tensors):
    size = tensors[0].numel()
    programs = triton.cdiv(size, CONFIG.block_k)
    launch(kernel, programs, CONFIG, *tensors, size, BLOCK=CONFIG.block_k)
    return tensors[-1]
