"""What is asked of a pool, checked, with the block that can serve it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.memory.blocks import BlockKey
from bitnet_torch.memory.size_class import size_class

# Every allocator of PyTorch aligns at least this far.
NATURAL_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        shape: Of the tensor.
        dtype: Of the tensor.
        strides: Of the tensor, contiguous.
        nbytes: Of the tensor.
        device: Name of the device, with its index.
        alignment: Of the address; 1 where every block will do.
        pinned: Page-locked.
        key: Of the blocks that serve it.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    device: str
    alignment: int
    pinned: bool
    key: BlockKey


def canonical(device: torch.device | str) -> torch.device:
    """Return the device with its index, as counters are kept by, without initialising it."""
    where = torch.device(device)
    if where.index is not None or where.type in ("cpu", "meta"):
        return torch.device(where.type) if where.type == "cpu" else where
    ready = where.type == "cuda" and torch.cuda.is_initialized()
    return torch.device(where.type, torch.cuda.current_device() if ready else 0)


def checked_request(
    shape: int | Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
    alignment: int,
    pinned: bool,
) -> Request:
    """Return the request; see :meth:`HybridMemoryPool.allocate` for its errors."""
    size = shape if isinstance(shape, int) else tuple(shape)
    if device == "cpu":
        return _request(size, dtype, "cpu", 0, alignment, pinned)
    where = canonical(device)
    stream = torch.cuda.current_stream(where).cuda_stream if where.type == "cuda" else 0
    return _request(size, dtype, str(where), stream, alignment, pinned)


@functools.lru_cache(maxsize=1024)
def _request(
    size: int | tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    stream: int,
    alignment: int,
    pinned: bool,
) -> Request:
    shape = _shape(size, dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < 1 or min(shape, default=1) < 0:
        raise ShapeError(f"a lease needs at least one byte, got {size} of {dtype}", shape=size)
    if alignment < 1 or alignment & (alignment - 1):
        raise ConfigurationError(f"alignment must be a power of two, got {alignment}")
    if device != "cpu" and pinned:
        raise ConfigurationError(f"only host memory can be pinned, not memory of {device}")
    far = alignment > NATURAL_ALIGNMENT
    if far and device.startswith("mps"):
        raise ConfigurationError(f"mps has no addresses to align to {alignment} bytes")
    block = size_class(nbytes + alignment if far else nbytes)
    key = (device, block, stream, pinned)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Request(shape, strides, dtype, nbytes, device, alignment if far else 1, pinned, key)


def _shape(size: int | tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    if not isinstance(size, int):
        return size
    if size % dtype.itemsize:
        raise ShapeError(
            f"{size} bytes are no whole number of {dtype}, {dtype.itemsize} bytes each", nbytes=size
        )
    return (size // dtype.itemsize,)
