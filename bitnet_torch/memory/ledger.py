"""The books of the trackers written in Python: storages by weak reference.

A storage's end is told by a weak reference's callback, which may run in any thread at any moment,
also inside this module: it only appends to a queue and never waits for the lock. Whoever holds
the lock takes the queue in before letting go, or the next caller does.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from bitnet_torch.memory.records import Allocation, StorageEvent, Tally
from bitnet_torch.memory.sites import Site

T = TypeVar("T")


@dataclass(slots=True)
class _Entry:
    """A live storage, and the reference that tells its end."""

    number: int
    key: int
    address: int
    nbytes: int
    device: str
    op: str
    module: str
    born_ns: int
    stack: tuple[Site, ...]
    reference: weakref.ref[torch.UntypedStorage] | None = None


class Ledger:
    """Counts storages that are shown to it.

    Args:
        max_events: How many events are kept, the last ones; 0 for none.

    Attributes:
        dropped_events: Older events that were not kept.
    """

    def __init__(self, max_events: int) -> None:
        self.dropped_events = 0
        self._events: deque[StorageEvent] = deque(maxlen=max_events)
        self._lock = threading.Lock()
        self._ended: deque[_Entry] = deque()
        self._live: dict[int, _Entry] = {}
        self._numbers = 0
        self._devices: dict[str, Tally] = {}
        self._modules: dict[str, Tally] = {}
        self._ops: dict[str, Tally] = {}
        self._lowest: dict[str, int] = {}
        self._scopes: dict[object, tuple[str, Tally]] = {}

    def knows(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage is in the books; an address alone may be another's by now."""
        entry = self._live.get(storage._cdata)
        return entry is not None and _refers_to(entry, storage)

    def add(
        self,
        storage: torch.UntypedStorage,
        op: str,
        module: str,
        stack: tuple[Site, ...] = (),
    ) -> None:
        """Enter a storage."""
        entry = _Entry(
            0, storage._cdata, _address(storage), storage.nbytes(), str(storage.device), op, module,
            time.perf_counter_ns(), stack,
        )  # fmt: skip
        ended = self._ended

        def on_end(_: object, entry: _Entry = entry) -> None:
            ended.append(entry)

        entry.reference = weakref.ref(storage, on_end)
        with self._lock:
            self._take_in()
            self._numbers += 1
            entry.number = self._numbers
            self._live[entry.key] = entry
            for tally in self._tallies(entry):
                tally.add(entry.nbytes)
            self._note(entry, entry.nbytes, stack)

    def resize(self, storage: torch.UntypedStorage) -> None:
        """Correct the size of a storage that is in the books."""
        with self._lock:
            self._take_in()
            entry = self._live.get(storage._cdata)
            change = storage.nbytes() - entry.nbytes if entry is not None else 0
            if entry is None or not change:
                return
            for tally in self._tallies(entry):
                if change > 0:
                    tally.add(change, 0)
                else:
                    tally.remove(-change, 0)
            entry.nbytes += change
            entry.address = _address(storage)
            self._note(entry, change, ())

    def tally(self, device: str) -> Tally:
        """Return the counts of a device, as they are now."""
        return self._read(lambda: _copy(self._devices.get(device, Tally())))

    def swing(self, device: str) -> tuple[int, int]:
        """Return the least live bytes of a device since the last call, and those of now."""

        def read() -> tuple[int, int]:
            now = self._devices.get(device, Tally()).current
            return self._lowest.pop(device, now), now

        return self._read(read)

    def by_module(self) -> dict[str, Tally]:
        """Return the counts of each module."""
        return self._read(lambda: {name: _copy(t) for name, t in self._modules.items()})

    def by_op(self) -> dict[str, Tally]:
        """Return the counts of each operator."""
        return self._read(lambda: {name: _copy(t) for name, t in self._ops.items()})

    def live(self) -> list[Allocation]:
        """Return every live storage."""
        return self._read(lambda: [_allocation(entry) for entry in self._live.values()])

    def events(self) -> list[StorageEvent]:
        """Return the events that were kept, oldest first."""
        return self._read(lambda: list(self._events))

    def numbers(self) -> int:
        """Return the number of the newest allocation."""
        return self._numbers

    def reset_peak(self) -> None:
        """Let all peaks start anew."""

        def reset() -> None:
            for tallies in (self._devices, self._modules, self._ops):
                for tally in tallies.values():
                    tally.peak = tally.current

        self._read(reset)

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the entries and events, without the strings that they share."""
        kept = (*self._live.values(), *self._events)
        own = sum(sys.getsizeof(row) for row in kept)
        return own + sys.getsizeof(self._live) + sys.getsizeof(self._events)

    def open_scope(self, device: str) -> object:
        """Count what happens on a device from now on; return the key of these counts."""
        key = object()

        def begin() -> None:
            self._scopes[key] = (device, Tally())

        self._read(begin)
        return key

    def read_scope(self, key: object) -> Tally:
        """Return the counts since a scope was opened."""
        return self._read(lambda: _copy(self._scopes[key][1]))

    def close_scope(self, key: object) -> None:
        """End the counting."""
        self._read(lambda: self._scopes.pop(key, None))

    def _read(self, what: Callable[[], T]) -> T:
        with self._lock:
            self._take_in()
            return what()

    def _take_in(self) -> None:
        while self._ended:
            try:
                entry = self._ended.popleft()
            except IndexError:
                return
            if self._live.get(entry.key) is entry:
                del self._live[entry.key]
            for tally in self._tallies(entry):
                tally.remove(entry.nbytes)
            current = self._devices[entry.device].current
            self._lowest[entry.device] = min(self._lowest.get(entry.device, current), current)
            self._note(entry, -entry.nbytes, ())

    def _tallies(self, entry: _Entry) -> list[Tally]:
        found = [
            self._devices.setdefault(entry.device, Tally()),
            self._modules.setdefault(entry.module, Tally()),
            self._ops.setdefault(entry.op, Tally()),
        ]
        return found + [tally for device, tally in self._scopes.values() if device == entry.device]

    def _note(self, entry: _Entry, change: int, stack: tuple[Site, ...]) -> None:
        if self._events.maxlen == 0:
            return
        if len(self._events) == self._events.maxlen:
            self.dropped_events += 1
        self._events.append(
            StorageEvent(
                time.perf_counter_ns(), entry.address, change, entry.device, entry.op,
                entry.module, threading.get_ident() & 0xFFFF, stack,
            )
        )  # fmt: skip


def _refers_to(entry: _Entry, storage: torch.UntypedStorage) -> bool:
    return entry.reference is not None and entry.reference() is storage


def _copy(tally: Tally) -> Tally:
    return Tally(tally.current, tally.peak, tally.allocated, tally.freed, tally.allocs, tally.frees)


def _allocation(entry: _Entry) -> Allocation:
    return Allocation(
        entry.number, entry.address, entry.nbytes, entry.device, entry.op, entry.module,
        entry.born_ns, entry.stack,
    )  # fmt: skip


def _address(storage: torch.UntypedStorage) -> int:
    try:
        return storage.data_ptr()
    except RuntimeError:
        return 0
