"""The counter over which memory is lent: taking, giving back, trimming, and nothing else.

One lock guards the counters and free lists. It is never held while PyTorch is asked for memory,
while a callback runs, or while anything could end a lease: a lease that is dropped puts itself
into a queue, which the next call takes in. The limit is checked and the bytes counted before the
memory is asked for, so threads cannot overshoot it together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import LeaseError, OutOfMemoryError
from bitnet_torch.memory import poison
from bitnet_torch.memory.adoption import adopted_block, adoption
from bitnet_torch.memory.blocks import Block, BlockStore, take_memory, typed_view
from bitnet_torch.memory.config import MemoryPoolConfig, check_not_negative
from bitnet_torch.memory.hooks import Callbacks, LeaseEvent, new_errors
from bitnet_torch.memory.lease import Lease
from bitnet_torch.memory.limits import Limits
from bitnet_torch.memory.native_counts import empty_native_cache
from bitnet_torch.memory.request import Request, canonical, checked_request
from bitnet_torch.memory.tracker import MemoryTracker

Shape = int | Sequence[int]
Returned = tuple[Block, int, str, list[Any] | None]


class Lender:
    """Lends blocks of memory and takes them back.

    Args:
        config: Its settings.

    Attributes:
        config: As given.
        callback_errors: The last callbacks that raised.
        returned: Leases that were dropped, not yet taken in.
    """

    _tracker: MemoryTracker

    def __init__(self, config: MemoryPoolConfig) -> None:
        self.config = config
        self.callback_errors = new_errors()
        self.returned: deque[Returned] = deque()
        self._lock = threading.Lock()
        self._limits = Limits(config)
        self._store = BlockStore(self._limits.most_cached)
        self._on_allocate = Callbacks(self.callback_errors)
        self._on_free = Callbacks(self.callback_errors)
        self._reclaimers: list[Callable[[], None]] = []

    def allocate(
        self,
        shape: Shape,
        dtype: torch.dtype = torch.uint8,
        device: torch.device | str = "cpu",
        *,
        tag: str = "",
        alignment: int = 64,
        pinned: bool = False,
    ) -> Lease:
        """Take memory, whose content is undefined.

        Args:
            shape: A shape, or a number of bytes, which becomes a vector of as many as they hold.
            dtype: Of the tensor.
            device: Where.
            tag: A name for reports.
            alignment: Of the address, a power of two of bytes.
            pinned: Page-locked host memory, for copies to a GPU.

        Raises:
            ShapeError: Less than one byte, or a number of bytes that ``dtype`` does not divide.
            ConfigurationError: The alignment is no power of two, or ``pinned`` on a GPU.
            OutOfMemoryError: Over the pool's limit, or there is no such memory; nothing has
                changed.
            LeaseError: In debug mode: the block at hand was written after its release.
        """
        request = checked_request(shape, dtype, device, alignment, pinned)
        if self.returned or self._store.pending:
            self._take_in()
        block = self._claimed(request, tag)
        lease = Lease(self, block, typed_view(block, request), request.nbytes, tag)
        if self._on_allocate:
            self._on_allocate.call(LeaseEvent("allocate", request.device, request.nbytes, tag))
        return lease

    def _claimed(self, request: Request, tag: str) -> Block:
        """Return a block for ``request``, a cached one or a new one, counted."""
        counters = self._store.counters_of(request.device)
        with self._lock:
            block = self._store.take(request.key)
            if block is None:
                counters.misses += 1
                self._limits.make_room(self._store, request)
            else:
                counters.hits += 1
            peaks = counters.peaks()
            counters.claim(request.nbytes, request.key[1])
            if block is not None:
                self._begin(block, request.nbytes, tag)
        if block is None:
            return self._fresh(request, tag, peaks)
        if block.poisoned_by is not None:
            self._check_poison(block, request)
        return block

    def adopt(self, tensor: Tensor, tag: str = "") -> Lease:
        """Lend memory that is there already: the whole storage of ``tensor``, which keeps it.

        It counts as a lease, against the limits too, until it is released or dropped; then it is
        no longer the pool's, and ends with its last tensor.

        Args:
            tensor: Any that has a storage.
            tag: A name for reports.

        Raises:
            ShapeError: The storage is empty.
            OutOfMemoryError: Over the pool's limit; nothing has changed.
            LeaseError: It was adopted before.
        """
        block = adopted_block(tensor)
        request = adoption(block)
        self._take_in()
        counters = self._store.counters_of(request.device)
        with self._lock:
            if self._store.has_adopted(block):
                raise LeaseError(f"the storage of a lease cannot be adopted again: {tag!r}")
            counters.misses += 1
            self._limits.make_room(self._store, request)
            counters.claim(request.nbytes, request.key[1])
            self._admit(block, request.nbytes, tag)
        self._tracker.notice_block(block)
        lease = Lease(self, block, block.storage, request.nbytes, tag)
        if self._on_allocate:
            self._on_allocate.call(LeaseEvent("allocate", request.device, request.nbytes, tag))
        return lease

    def deallocate(self, lease: Lease) -> None:
        """Give a lease back.

        Raises:
            LeaseError: It is another pool's, or has been given back before. Nothing has changed.
        """
        if lease._pool is not self:
            raise LeaseError(f"{lease} belongs to another pool", tag=lease.tag)
        with self._lock:
            # Taken under the lock, so that of two threads one gets the error.
            block, lease._block = lease._block, None
            if block is not None and not self.config.debug and lease._streams is None:
                self._end(block, lease.nbytes)
        if block is None:
            raise LeaseError(f"{lease} was released before", tag=lease.tag)
        lease._tensor = None
        if self.config.debug or lease._streams is not None:
            self._end_slowly(block, lease.nbytes, lease.tag, lease._streams)
        if self._on_free:
            self._on_free.call(LeaseEvent("free", lease.device, lease.nbytes, lease.tag))

    def trim(
        self,
        keep_bytes: int = 0,
        device: torch.device | str | None = None,
        *,
        include_native: bool = False,
    ) -> int:
        """Give cached blocks back to PyTorch, the largest first.

        Args:
            keep_bytes: Bytes of cache that may stay on each device.
            device: Which; None: all that the pool has used.
            include_native: Also let PyTorch's allocator give its free memory to the device.

        Returns:
            Bytes given back; with ``include_native`` on an accelerator, the bytes that the
            device got.
        """
        check_not_negative("keep_bytes", keep_bytes)
        self._take_in()
        names = self._store.devices() if device is None else [str(canonical(device))]
        freed = 0
        for name in names:
            with self._lock:
                blocks = self._store.trim(name, keep_bytes)
            given = sum(block.key[1] for block in blocks)
            del blocks
            where = torch.device(name)
            freed += empty_native_cache(where) if include_native and where.type != "cpu" else given
        return freed

    # -- inner workings

    def _fresh(self, request: Request, tag: str, peaks: tuple[int, int, int, int]) -> Block:
        """Ask PyTorch for a block that has been counted already; undo that if there is none."""
        try:
            try:
                block = take_memory(request)
            except (RuntimeError, MemoryError):
                # PyTorch has already retried its own cache; what is left is in ours.
                self.trim(device=request.device)
                block = take_memory(request)
        except (RuntimeError, MemoryError) as error:
            with self._lock:
                counters = self._store.counters_of(request.device)
                counters.unclaim(request.nbytes, request.key[1], peaks)
            raise OutOfMemoryError(
                f"{request.nbytes} bytes cannot be had on {request.device}: "
                f"{str(error).partition(chr(10))[0]}",
                requested=request.nbytes,
                device=request.device,
            ) from error
        with self._lock:
            self._admit(block, request.nbytes, tag)
        self._tracker.notice_block(block)
        return block

    def _admit(self, block: Block, nbytes: int, tag: str) -> None:
        """Enter a block that is new here, under the lock."""
        self._store.adopt(block)
        self._begin(block, nbytes, tag)

    def _begin(self, block: Block, nbytes: int, tag: str) -> None:
        """Note whose a block is from now on, under the lock."""
        block.nbytes = nbytes
        block.tag = tag
        table = self._tracker.table
        if table is not None:
            table.begin(block)

    def _check_poison(self, block: Block, request: Request) -> None:
        try:
            poison.check(block)
        except LeaseError:
            with self._lock:
                self._end(block, request.nbytes, keep=False)
            raise

    def _end(self, block: Block, nbytes: int, keep: bool = True, pending: Any = None) -> None:
        """Count the end of a lease and keep, park or forget its block, under the lock."""
        self._store.counters_of(block.key[0]).end(nbytes, block.key[1])
        if block.born_ns and self._tracker.rows is not None:
            self._tracker.rows.end(block)
        self._store.put(block, keep=keep and not block.adopted, pending=pending)

    def _end_slowly(
        self,
        block: Block,
        nbytes: int,
        tag: str,
        streams: list[Any] | None,
        keep: bool = True,
    ) -> None:
        """End a lease whose block must be poisoned, or waited for, first."""
        events = [stream.record_event() for stream in streams] if streams else None
        if self.config.debug and keep and not (events or block.adopted):
            poison.apply(block, tag)
        with self._lock:
            self._end(block, nbytes, keep, events)

    def _take_in(self) -> None:
        """Take in leases that were dropped, and blocks whose streams have passed."""
        for reclaim in self._reclaimers:
            reclaim()
        while self.returned:
            try:
                block, nbytes, tag, streams = self.returned.popleft()
            except IndexError:
                break
            # A tensor that outlived its lease keeps the bytes; they are no longer the pool's.
            keep = block.is_alone()
            self._end_slowly(block, nbytes, tag, streams, keep)
            with self._lock:
                self._store.counters_of(block.key[0]).dropped += 1
            if self._on_free:
                self._on_free.call(LeaseEvent("free", block.key[0], nbytes, tag))
        if self._store.pending:
            with self._lock:
                self._store.settle()
