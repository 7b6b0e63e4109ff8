"""The tracker that needs no compiler: a dispatch mode sees every storage that an operator returns.

It is inexact: a buffer that lives and dies inside one kernel is never returned, and compiled code
shows nothing at all. It sees only threads that entered it, which is the one that started it. Its
price is some 50 microseconds for each operator that allocates.
"""

from __future__ import annotations

import threading

import torch

from bitnet_torch.memory.ledger import Ledger
from bitnet_torch.memory.records import OUTSIDE, Allocation, StorageEvent, Tally
from bitnet_torch.memory.storage_mode import StorageMode


class DispatchBackend:
    """Counts what operators return in the thread that starts it.

    Args:
        max_events: Events kept, the last ones.
        stack_depth: Lines remembered for each storage; 0 for none.
    """

    source = "dispatch"
    exact = False

    def __init__(self, max_events: int, stack_depth: int) -> None:
        self._ledger = Ledger(max_events)
        self._mode = StorageMode(self._ledger, self._module, stack_depth, self._check)
        self._thread = threading.local()
        self._crossed = threading.Condition()
        self._thresholds: list[list[int]] = []
        self._running = False

    @property
    def dropped_events(self) -> int:
        """Older events that were not kept."""
        return self._ledger.dropped_events

    def start(self) -> None:
        """Enter the mode in this thread."""
        self._running = True
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Leave the mode, in the thread that entered it; what is alive ends in the books."""
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        with self._crossed:
            self._running = False
            self._crossed.notify_all()

    def add(self, storage: torch.UntypedStorage, op: str, module: str) -> None:
        """Count a storage that is older than the counting, until it ends."""
        self._ledger.add(storage, op, module)

    def tally(self, device: str) -> Tally:
        """Return the counts of a device."""
        return self._ledger.tally(device)

    def by_module(self) -> dict[str, Tally]:
        """Return the counts of each module."""
        return self._ledger.by_module()

    def by_op(self) -> dict[str, Tally]:
        """Return the counts of each operator."""
        return self._ledger.by_op()

    def live(self) -> list[Allocation]:
        """Return every live storage."""
        return self._ledger.live()

    def events(self) -> list[StorageEvent]:
        """Return the events that were kept, oldest first."""
        return self._ledger.events()

    def numbers(self) -> int:
        """Return the number of the newest allocation."""
        return self._ledger.numbers()

    def knows(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage is counted."""
        return self._ledger.knows(storage)

    def reset_peak(self) -> None:
        """Let all peaks start anew."""
        self._ledger.reset_peak()

    def enter_module(self, name: str) -> object:
        """Attribute this thread's storages to a module."""
        before = self._module()
        self._thread.module = name
        return before

    def leave_module(self, before: object) -> None:
        """Attribute them as before again."""
        self._thread.module = before

    def open_scope(self) -> object:
        """Count what happens on the CPU from now on."""
        return self._ledger.open_scope("cpu")

    def read_scope(self, key: object) -> Tally:
        """Return the counts since a scope was opened."""
        return self._ledger.read_scope(key)

    def close_scope(self, key: object) -> None:
        """End the counting."""
        self._ledger.close_scope(key)

    def set_thresholds(self, thresholds: list[int]) -> None:
        """Watch numbers of live bytes on the CPU."""
        now = self._ledger.tally("cpu").current
        self._thresholds = [[nbytes, 0, now >= nbytes] for nbytes in thresholds]

    def crossings(self) -> list[int]:
        """Return how often each of them has been crossed upwards since it was set."""
        return [crossings for _, crossings, _ in self._thresholds]

    def wait_crossing(self, seconds: float) -> None:
        """Sleep until one is crossed upwards, counting has ended or the time is over."""
        with self._crossed:
            if self._running:
                self._crossed.wait(seconds)

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the books."""
        return self._ledger.overhead_bytes

    def _module(self) -> str:
        name: str = getattr(self._thread, "module", OUTSIDE)
        return name

    def _check(self) -> None:
        """Count crossings; a swing of less than a twentieth round a threshold is none."""
        if not self._thresholds:
            return
        lowest, now = self._ledger.swing("cpu")
        crossed = False
        for threshold in self._thresholds:
            nbytes, _, above = threshold
            above = above and lowest >= nbytes - nbytes // 20
            crossed |= now >= nbytes and not above
            threshold[1] += now >= nbytes and not above
            threshold[2] = above or now >= nbytes
        if crossed:
            with self._crossed:
                self._crossed.notify_all()
