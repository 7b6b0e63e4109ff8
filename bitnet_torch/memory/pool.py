"""The pool: memory that is taken, given back and taken again, with every byte accounted for.

PyTorch's CPU allocator asks the C library each time, which for large blocks means fresh pages
from the kernel each time; a lease of a cached block costs neither. On accelerators PyTorch has a
cache of its own, and the pool sits on top of it for its limits, tags and statistics.

One lock guards the counters and free lists. It is never held while PyTorch is asked for memory,
while a callback runs, or while anything could end a lease: a lease that is dropped puts itself
into a queue, which the next call takes in. The limit is checked and the bytes counted before the
memory is asked for, so threads cannot overshoot it together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import psutil
import torch

from bitnet_torch.errors import LeaseError, OutOfMemoryError
from bitnet_torch.memory import forking, poison
from bitnet_torch.memory.blocks import Block, BlockStore, take_memory, typed_view
from bitnet_torch.memory.config import MemoryPoolConfig, check_limits, check_not_negative
from bitnet_torch.memory.counters import DeviceCounters
from bitnet_torch.memory.hooks import Callbacks, LeaseEvent, Unregister, new_errors
from bitnet_torch.memory.lease import Lease
from bitnet_torch.memory.lease_table import LeaseRow
from bitnet_torch.memory.native_counts import empty_native_cache
from bitnet_torch.memory.pressure import PressureLevel, PressureMonitor
from bitnet_torch.memory.recovery import Policy, RecoveryStep, default_policy
from bitnet_torch.memory.request import Request, canonical, checked_request
from bitnet_torch.memory.stats import MemoryStats
from bitnet_torch.memory.tracker import MemoryTracker
from bitnet_torch.memory.verify import verify_counts
from bitnet_torch.memory.view import stats_of

_MOST_CACHED = 1 << 30
_KEPT_STEPS = 100

Shape = int | Sequence[int]
Returned = tuple[Block, int, str, list[Any] | None]


class HybridMemoryPool:
    """Leases of memory on any device, with limits, statistics and a tracker.

    ``HybridMemoryPool.instance()`` is the pool of the process, which the package's own caches and
    buffers use; further pools are independent of it.

    Args:
        config: Settings; the defaults if None.

    Attributes:
        config: The settings.
        callback_errors: The last callbacks that raised.
        returned: Leases that were dropped, not yet taken in.
        recovery_policy: Decides what is done when memory runs out.
        recoveries: The last steps that were taken then.
    """

    _instance: ClassVar[HybridMemoryPool | None] = None
    _instance_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: MemoryPoolConfig | None = None) -> None:
        self.config = config or MemoryPoolConfig()
        self.callback_errors = new_errors()
        self.returned: deque[Returned] = deque()
        self.recovery_policy: Policy = default_policy
        self.recoveries: deque[RecoveryStep] = deque(maxlen=_KEPT_STEPS)
        self._lock = threading.Lock()
        self._store = BlockStore(_most_cached(self.config))
        self._soft: dict[str, int | None] = {}
        self._hard: dict[str, int | None] = {}
        self._on_allocate = Callbacks(self.callback_errors)
        self._on_free = Callbacks(self.callback_errors)
        self._monitors: dict[str, PressureMonitor] = {}
        # Before anybody can see this pool: there is no moment without its tracker.
        self._tracker = MemoryTracker(self)
        forking.remember(self, self._lock)

    @classmethod
    def instance(cls) -> HybridMemoryPool:
        """Return the pool of this process, made at the first call."""
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls()
            return cls._instance

    # -- taking and giving back

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
                self._check_limit(request)
            else:
                counters.hits += 1
            peaks = (counters.peak_leased, counters.peak_reserved, counters.peak_live)
            counters.claim(request.nbytes, request.key[1])
            table = self._tracker.table
            if table is not None and block is not None:
                table.begin(block, request.nbytes, tag)
        if block is None:
            return self._fresh(request, tag, peaks)
        if block.poisoned:
            self._check_poison(block, request)
        return block

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

    # -- looking

    def get_stats(self, device: torch.device | str | None = None) -> MemoryStats:
        """Return what is known about a device, the pool's own if None.

        Raises:
            DeviceError: There is no such device here.
        """
        self._take_in()
        return stats_of(self, canonical(device or self.config.device))

    def get_memory_tracker(self) -> MemoryTracker:
        """Return the tracker that this pool feeds; ``tracker.level`` says what it records."""
        return self._tracker

    def limits(self, device: str) -> tuple[int | None, int | None]:
        """Return the (soft, hard) limits of a device in bytes."""
        soft = self._soft.get(device, self.config.soft_limit)
        return soft, self._hard.get(device, self.config.hard_limit)

    def counted(self, device: str) -> tuple[DeviceCounters, int | None]:
        """Return a copy of the counters of a device, and the size of its largest cached block."""
        with self._lock:
            counters = replace(self._store.counters_of(device))
            sizes = [block.key[1] for block in self._store.free_blocks(device)]
        return counters, max(sizes, default=None)

    def blocks(self) -> list[Block]:
        """Return every block, leased or cached."""
        with self._lock:
            return self._store.blocks()

    def lease_rows(self) -> list[LeaseRow]:
        """Return the rows of leases that the tracker has kept."""
        self._take_in()
        with self._lock:
            table = self._tracker.rows
            return table.rows(self._store.blocks()) if table is not None else []

    def used_devices(self) -> list[str]:
        """Return the names of the devices that leases were asked for on."""
        return self._store.devices()

    def verify(self) -> None:
        """Check that all counters agree with the blocks, the rows and each other.

        Raises:
            BitNetError: They do not; the message has both values.
            LeaseError: In debug mode: a cached block was written after its release.
        """
        self._take_in()
        with self._lock:
            verify_counts(self._store)

    # -- settings and callbacks

    def set_limits(
        self,
        soft: int | None = None,
        hard: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Set both limits of a device, the pool's own if None; what is out stays out.

        Raises:
            ConfigurationError: A limit is below 0 or the soft one above the hard one.
        """
        check_limits(soft, hard)
        name = str(canonical(device or self.config.device))
        with self._lock:
            self._soft[name], self._hard[name] = soft, hard
        least = min((limit for limit in (soft, hard) if limit is not None), default=None)
        if least is not None:
            reserved = self._store.counters_of(name)
            self.trim(max(0, least - reserved.held - reserved.pending), name)

    def on_allocate(self, callback: Callable[[LeaseEvent], Any]) -> Unregister:
        """Call ``callback`` after each lease has been taken; return what ends that."""
        return self._on_allocate.add(callback)

    def on_free(self, callback: Callable[[LeaseEvent], Any]) -> Unregister:
        """Call ``callback`` after each lease has ended; return what ends that."""
        return self._on_free.add(callback)

    def pressure(self, device: torch.device | str | None = None) -> PressureMonitor:
        """Return the pressure monitor of a device; it samples once callbacks are registered."""
        name = str(canonical(device or self.config.device))
        with self._lock:
            monitor = self._monitors.get(name)
            if monitor is None:
                monitor = PressureMonitor(
                    name,
                    self.config.thresholds,
                    probe=self.config.probe,
                    errors=self.callback_errors,
                )
                self._monitors[name] = monitor
        return monitor

    def register_pressure_callback(
        self,
        callback: Callable[..., Any],
        min_level: PressureLevel = PressureLevel.HIGH,
        device: torch.device | str | None = None,
    ) -> Unregister:
        """Call ``callback(event)`` when pressure on a device changes at or above a level.

        A thread samples the device from now on, until the returned function is called.
        """
        monitor = self.pressure(device)
        unregister = monitor.register(callback, min_level)
        monitor.start()

        def end() -> None:
            unregister()
            if not monitor.has_callbacks:
                monitor.stop()

        return end

    def reset_rows(self) -> None:
        """Forget the rows of leases that have ended."""
        with self._lock:
            if self._tracker.rows is not None:
                self._tracker.rows.reset()

    def reset_peak(self) -> None:
        """Let the pool's peaks start anew from what is out now."""
        with self._lock:
            self._store.reset_peaks()

    # -- inner workings

    def _check_limit(self, request: Request) -> None:
        """Make room under the hard limit or refuse, all under the lock."""
        counters = self._store.counters_of(request.device)
        soft, hard = self.limits(request.device)
        size = request.key[1]
        blocks: list[Block] = []
        for limit in (soft, hard):
            if limit is not None and counters.reserved + size > limit:
                keep = max(0, limit - counters.held - counters.pending - size)
                blocks += self._store.trim(request.device, keep)
        if request.pinned and self._store.pinned + size > _most_pinned(self.config):
            hard = _most_pinned(self.config)
        elif hard is None or counters.reserved + size <= hard:
            return
        counters.failed += 1
        raise OutOfMemoryError(
            f"{request.nbytes} bytes ({size} rounded up) on {request.device} exceed the pool's "
            f"limit of {hard}: {counters.held} are leased, {counters.pending} pending, "
            f"{counters.cached} cached",
            requested=request.nbytes,
            limit=hard,
            leased=counters.held,
            device=request.device,
        )

    def _fresh(self, request: Request, tag: str, peaks: tuple[int, int, int]) -> Block:
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
            self._store.adopt(block)
            table = self._tracker.table
            if table is not None:
                table.begin(block, request.nbytes, tag)
        self._tracker.notice_block(block)
        return block

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
        self._store.put(block, keep=keep, pending=pending)

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
        if self.config.debug and keep and not events:
            poison.apply(block, tag)
        with self._lock:
            self._end(block, nbytes, keep, events)

    def _take_in(self) -> None:
        """Take in leases that were dropped, and blocks whose streams have passed."""
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


def _most_cached(config: MemoryPoolConfig) -> int:
    if config.max_cached is not None:
        return config.max_cached
    return min(_MOST_CACHED, int(psutil.virtual_memory().total) // 10)


def _most_pinned(config: MemoryPoolConfig) -> int:
    if config.max_pinned is not None:
        return config.max_pinned
    return int(psutil.virtual_memory().total) // 10
