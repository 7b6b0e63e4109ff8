"""The exact tracker of the CPU: Python's side of ``native/allocator_tracker.cpp``."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import torch

from bitnet_torch.memory.native_library import (
    INT64,
    RawEvent,
    RawRow,
    RawTally,
    load,
    read_all,
    tally_of,
)
from bitnet_torch.memory.records import OUTSIDE, Allocation, StorageEvent, Tally
from bitnet_torch.memory.sites import Site


class AllocatorBackend:
    """Counts every block of PyTorch's CPU allocator, whichever thread or code asks for it.

    Args:
        max_events: Events kept, the last ones.
        stack_depth: Lines remembered for each allocation; 0 for none.

    Raises:
        NativeUnavailable: It cannot be compiled or loaded here.
    """

    source = "cpu-allocator"
    exact = True

    def __init__(self, max_events: int, stack_depth: int) -> None:
        self._lib = load()
        self._max_events = max_events
        self._depth = stack_depth
        self._modules: dict[str, int] = {OUTSIDE: 0}
        self._ops: dict[int, str] = {}
        self._stacks: dict[int, tuple[Site, ...]] = {0: ()}
        self._references: set[weakref.ref[torch.UntypedStorage]] = set()
        self._thresholds = 0
        self._seen = 0

    @property
    def dropped_events(self) -> int:
        """Older events that were not kept."""
        return self._total()[1]

    def start(self) -> None:
        """Put the counting allocator in front of PyTorch's."""
        self._seen = 0
        self._lib.bitnet_install(self._max_events, self._depth)

    def stop(self) -> None:
        """Put PyTorch's allocator back; blocks that are alive end in the books."""
        self._lib.bitnet_uninstall()

    def add(self, storage: torch.UntypedStorage, op: str, module: str) -> None:
        """Count a storage that is older than the counting, until it ends."""
        address, lib = storage.data_ptr(), self._lib
        number = lib.bitnet_add(address, storage.nbytes(), self._number(module), op.encode())
        references = self._references

        # The books' lock is never held by somebody who waits for the GIL, so this may wait for it.
        def on_end(reference: weakref.ref[torch.UntypedStorage]) -> None:
            references.discard(reference)
            lib.bitnet_remove(address, number)

        references.add(weakref.ref(storage, on_end))

    def tally(self, device: str) -> Tally:
        """Return the counts of the CPU, nothing for other devices."""
        return self._total()[0] if device == "cpu" else Tally()

    def by_module(self) -> dict[str, Tally]:
        """Return the counts of each module."""
        names = list(self._modules)
        tallies = self._tallies(of_ops=False)
        return {names[i]: tally for i, tally in enumerate(tallies) if tally.allocs}

    def by_op(self) -> dict[str, Tally]:
        """Return the counts of each operator."""
        tallies = self._tallies(of_ops=True)
        return {self._op(i): tally for i, tally in enumerate(tallies) if tally.allocs}

    def live(self) -> list[Allocation]:
        """Return every live block."""
        names = list(self._modules)
        return [
            Allocation(
                row.number, row.address, row.nbytes, "cpu", self._op(row.op), names[row.module],
                row.born, self._stack(row.stack),
            )
            for row in read_all(self._lib.bitnet_live, RawRow)
        ]  # fmt: skip

    def events(self) -> list[StorageEvent]:
        """Return the events that were kept, oldest first."""
        names = list(self._modules)
        return [
            StorageEvent(
                e.time, e.address, e.change, "cpu", self._op(e.op), names[e.module], e.thread,
                self._stack(e.stack) if e.change > 0 else (),
            )
            for e in read_all(self._lib.bitnet_events, RawEvent)
        ]  # fmt: skip

    def numbers(self) -> int:
        """Return the number of the newest allocation."""
        return self._total()[0].allocs

    def knows(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage is counted."""
        return bool(self._lib.bitnet_knows(storage.data_ptr()))

    def reset_peak(self) -> None:
        """Let all peaks start anew."""
        self._lib.bitnet_reset_peak()

    def enter_module(self, name: str) -> object:
        """Attribute this thread's blocks to a module."""
        return self._lib.bitnet_set_module(self._number(name))

    def leave_module(self, before: object) -> None:
        """Attribute them as before again."""
        self._lib.bitnet_set_module(before)

    def open_scope(self) -> object:
        """Count what happens from now on."""
        return self._lib.bitnet_open_scope()

    def read_scope(self, key: object) -> Tally:
        """Return the counts since a scope was opened."""
        raw = RawTally()
        self._lib.bitnet_read_scope(key, ctypes.byref(raw))
        return tally_of(raw)

    def close_scope(self, key: object) -> None:
        """End the counting."""
        self._lib.bitnet_close_scope(key)

    def set_thresholds(self, thresholds: list[int]) -> None:
        """Watch numbers of live bytes."""
        self._thresholds = len(thresholds)
        values = (INT64 * len(thresholds))(*thresholds)
        self._lib.bitnet_set_thresholds(values, len(thresholds))

    def crossings(self) -> list[int]:
        """Return how often each of them has been crossed upwards since it was set."""
        out = (INT64 * self._thresholds)()
        self._lib.bitnet_crossings(out, self._thresholds)
        return list(out)

    def wait_crossing(self, seconds: float) -> None:
        """Sleep until one is crossed upwards, counting has ended or the time is over."""
        self._seen = self._lib.bitnet_wait_crossing(self._seen, seconds)

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the books."""
        return int(self._lib.bitnet_overhead())

    def _number(self, module: str) -> int:
        number = self._modules.get(module)
        return self._modules.setdefault(module, len(self._modules)) if number is None else number

    def _total(self) -> tuple[Tally, int]:
        raw, dropped = RawTally(), INT64()
        self._lib.bitnet_total(ctypes.byref(raw), ctypes.byref(dropped))
        return tally_of(raw), dropped.value

    def _tallies(self, of_ops: bool) -> list[Tally]:
        def read(out: Any, room: int) -> int:
            count: int = self._lib.bitnet_tallies(of_ops, out, room)
            return count

        return [tally_of(raw) for raw in read_all(read, RawTally)]

    def _op(self, number: int) -> str:
        name = self._ops.get(number)
        if name is None:
            room = ctypes.create_string_buffer(256)
            self._lib.bitnet_op_name(number, room, len(room) - 1)
            name = self._ops[number] = room.value.decode(errors="replace")
        return name

    def _stack(self, number: int) -> tuple[Site, ...]:
        stack = self._stacks.get(number)
        if stack is None:
            stack = tuple(Site(*frame) for frame in self._lib.bitnet_stack(number))
            self._stacks[number] = stack
        return stack
