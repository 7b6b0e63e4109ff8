"""Tensors on their way from a file to a GPU, through pinned memory of the pool.

A copy from pageable memory makes the driver stage it in pinned buffers of its own, one after the
other. Here two buffers are leases, tagged ``pinned staging``: while one is being read by the
GPU, the other is filled. They are taken at the first tensor and released at the end. Where
pinned memory cannot be had, tensors are copied as PyTorch does it, and the reason is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from bitnet_torch.errors import OutOfMemoryError
from bitnet_torch.memory import HybridMemoryPool, Lease

logger = logging.getLogger(__name__)

TAG = "pinned staging"
BUFFER_BYTES = 32 << 20


class Event(Protocol):
    """What is needed of ``torch.cuda.Event``."""

    def record(self) -> None:
        """Mark the end of what was asked of the current stream so far."""

    def synchronize(self) -> None:
        """Wait for the mark; return at once if there is none."""


class Staging:
    """Copies tensors to one device.

    Args:
        device: Where they shall lie. On anything but CUDA they are copied as PyTorch does it.
        pool: Lends the buffers; that of the process if None.
        pinned: Whether the buffers are pinned.
        event: Makes the marks that say when a buffer may be written again.
    """

    def __init__(
        self,
        device: torch.device,
        pool: HybridMemoryPool | None = None,
        *,
        pinned: bool = True,
        event: Callable[[], Event] = torch.cuda.Event,
    ) -> None:
        self._device = device
        self._pool = pool or HybridMemoryPool.instance()
        self._pinned, self._event = pinned, event
        self._buffers: list[tuple[Lease, Event]] = []
        self._staged = device.type == "cuda"

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        buffers, self._buffers = self._buffers, []
        for lease, event in buffers:
            # The next lease of these bytes may be written at once.
            event.synchronize()
            lease.release()

    def copy(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return ``tensor`` on the device, as ``dtype`` if one is given."""
        dtype = dtype or tensor.dtype
        if not (self._staged and tensor.device.type == "cpu" and tensor.numel()):
            return tensor.to(self._device, dtype)
        if not self._buffers and not self._take_buffers():
            return tensor.to(self._device, dtype)
        out = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        source, target = _bytes_of(tensor.contiguous()), _bytes_of(out)
        for turn, start in enumerate(range(0, source.numel(), BUFFER_BYTES)):
            lease, event = self._buffers[turn % len(self._buffers)]
            piece = source[start : start + BUFFER_BYTES]
            event.synchronize()
            buffer = lease.tensor[: piece.numel()]
            buffer.copy_(piece)
            target[start : start + piece.numel()].copy_(buffer, non_blocking=True)
            event.record()
        return out.to(dtype)

    def _take_buffers(self) -> bool:
        try:
            for _ in range(2):
                lease = self._pool.allocate(BUFFER_BYTES, tag=TAG, pinned=self._pinned)
                self._buffers.append((lease, self._event()))
        except OutOfMemoryError as error:
            logger.warning("weights are copied without pinned memory: %s", error)
            self._staged = False
        if not self._staged:
            self.__exit__(None, None, None)
        return self._staged


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor as bytes. One of a single element may have any stride."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
