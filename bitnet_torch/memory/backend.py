"""What a storage-level tracker of one kind of device must be able to do."""

from __future__ import annotations

from typing import Protocol

import torch

from bitnet_torch.memory.records import Allocation, StorageEvent, Tally


class Backend(Protocol):
    """Counts storages between ``start`` and ``stop``; what it has counted stays readable.

    Attributes:
        source: Its name in ``MemoryStats.source``.
        exact: Whether it sees every allocation.
        dropped_events: Older events that were not kept.
    """

    source: str
    exact: bool

    @property
    def dropped_events(self) -> int:
        """Older events that were not kept."""

    def start(self) -> None:
        """Begin to count, from zero."""

    def stop(self) -> None:
        """End to count."""

    def add(self, storage: torch.UntypedStorage, op: str, module: str) -> None:
        """Count a storage that is older than the counting, until it ends."""

    def tally(self, device: str) -> Tally:
        """Return the counts of a device."""

    def by_module(self) -> dict[str, Tally]:
        """Return the counts of each module."""

    def by_op(self) -> dict[str, Tally]:
        """Return the counts of each operator."""

    def live(self) -> list[Allocation]:
        """Return every live storage."""

    def events(self) -> list[StorageEvent]:
        """Return the events that were kept, oldest first."""

    def numbers(self) -> int:
        """Return the number of the newest allocation."""

    def knows(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage is counted."""

    def reset_peak(self) -> None:
        """Let all peaks start anew."""

    def enter_module(self, name: str) -> object:
        """Attribute this thread's allocations to a module; return what ``leave_module`` takes."""

    def leave_module(self, before: object) -> None:
        """Attribute them as before again."""

    def open_scope(self) -> object:
        """Count what happens from now on; return the key of these counts."""

    def read_scope(self, key: object) -> Tally:
        """Return the counts since a scope was opened."""

    def close_scope(self, key: object) -> None:
        """End the counting."""

    def set_thresholds(self, thresholds: list[int]) -> None:
        """Watch numbers of live bytes."""

    def crossings(self) -> list[int]:
        """Return how often each of them has been crossed upwards since it was set."""

    def wait_crossing(self, seconds: float) -> None:
        """Sleep until one is crossed upwards, counting has ended or the time is over."""

    @property
    def overhead_bytes(self) -> int:
        """Bytes of its own books."""
