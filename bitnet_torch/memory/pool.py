"""The pool: memory that is taken, given back and taken again, with every byte accounted for.

PyTorch's CPU allocator asks the C library each time, which for large blocks means fresh pages
from the kernel each time; a lease of a cached block costs neither. On accelerators PyTorch has a
cache of its own, and the pool sits on top of it for its limits, tags and statistics.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from bitnet_torch.memory import forking
from bitnet_torch.memory.blocks import Block
from bitnet_torch.memory.config import MemoryPoolConfig
from bitnet_torch.memory.counters import DeviceCounters
from bitnet_torch.memory.hooks import LeaseEvent, Unregister
from bitnet_torch.memory.lease_table import LeaseRow
from bitnet_torch.memory.lender import Lender
from bitnet_torch.memory.pressure import PressureLevel, PressureMonitor
from bitnet_torch.memory.recovery import Policy, RecoveryPolicy, RecoveryStep
from bitnet_torch.memory.request import canonical
from bitnet_torch.memory.stats import MemoryStats
from bitnet_torch.memory.tracker import MemoryTracker
from bitnet_torch.memory.verify import verify_counts
from bitnet_torch.memory.view import stats_of

_KEPT_STEPS = 100


class HybridMemoryPool(Lender):
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
        super().__init__(config or MemoryPoolConfig())
        # Before anybody can see this pool: there is no moment without its tracker.
        self._tracker = MemoryTracker(self)
        self.recovery_policy: Policy = RecoveryPolicy()
        self.recoveries: deque[RecoveryStep] = deque(maxlen=_KEPT_STEPS)
        self._monitors: dict[str, PressureMonitor] = {}
        forking.remember(self, self._lock)

    @classmethod
    def instance(cls) -> HybridMemoryPool:
        """Return the pool of this process, made at the first call."""
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls()
            return cls._instance

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
        return self._limits.of(device)

    def counted(self, device: str) -> tuple[DeviceCounters, int | None]:
        """Return a copy of the counters of a device, and the size of its largest cached block."""
        with self._lock:
            counters = replace(self._store.counters_of(device))
            sizes = [block.key[1] for block in self._store.free_blocks(device)]
        return counters, max(sizes, default=None)

    def joint_peak(self) -> int:
        """Return the most bytes that leases of all devices together have had."""
        return self._store.joint.peak_leased

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

    def lease_tags(self) -> dict[str, tuple[int, int]]:
        """Return bytes and number of the leases that are out, by tag, remembered or not."""
        self._take_in()
        tags: dict[str, tuple[int, int]] = {}
        for block in self.blocks():
            if block.nbytes:
                nbytes, count = tags.get(block.tag, (0, 0))
                tags[block.tag] = (nbytes + block.nbytes, count + 1)
        return tags

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
        name = str(canonical(device or self.config.device))
        with self._lock:
            self._limits.set(name, soft, hard)
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

    def add_reclaimer(self, reclaim: Callable[[], None]) -> None:
        """Call ``reclaim()`` before counts are read: it releases leases that have ended unseen."""
        self._reclaimers.append(reclaim)

    def reset_rows(self) -> None:
        """Forget the rows of leases that have ended."""
        with self._lock:
            if self._tracker.rows is not None:
                self._tracker.rows.reset()

    def reset_peak(self) -> None:
        """Let the pool's peaks start anew from what is out now."""
        with self._lock:
            self._store.reset_peaks()
