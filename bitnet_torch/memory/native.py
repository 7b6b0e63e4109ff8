"""The exact tracker of the CPU: Python's side of ``native/allocator_tracker.cpp``."""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any

import torch

from bitnet_torch.memory.native_build import library
from bitnet_torch.memory.records import OUTSIDE, Allocation, StorageEvent, Tally
from bitnet_torch.memory.sites import Site

_INT64 = ctypes.c_int64
_INT32 = ctypes.c_int32


class _Tally(ctypes.Structure):
    _fields_ = [(n, _INT64) for n in ("current", "peak", "allocated", "freed", "allocs", "frees")]


class _Row(ctypes.Structure):
    _fields_ = [
        *((n, _INT64) for n in ("address", "nbytes", "number", "born")),
        *((n, _INT32) for n in ("module", "op", "stack", "unused")),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        *((n, _INT64) for n in ("time", "address", "change")),
        *((n, _INT32) for n in ("module", "op", "stack", "thread")),
    ]


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
        self._lib = _load()
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
            for row in _read(self._lib.bitnet_live, _Row)
        ]  # fmt: skip

    def events(self) -> list[StorageEvent]:
        """Return the events that were kept, oldest first."""
        names = list(self._modules)
        return [
            StorageEvent(
                e.time, e.address, e.change, "cpu", self._op(e.op), names[e.module], e.thread,
                self._stack(e.stack) if e.change > 0 else (),
            )
            for e in _read(self._lib.bitnet_events, _Event)
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
        raw = _Tally()
        self._lib.bitnet_read_scope(key, ctypes.byref(raw))
        return _tally(raw)

    def close_scope(self, key: object) -> None:
        """End the counting."""
        self._lib.bitnet_close_scope(key)

    def set_thresholds(self, thresholds: list[int]) -> None:
        """Watch numbers of live bytes."""
        self._thresholds = len(thresholds)
        values = (_INT64 * len(thresholds))(*thresholds)
        self._lib.bitnet_set_thresholds(values, len(thresholds))

    def crossings(self) -> list[int]:
        """Return how often each of them has been crossed upwards since it was set."""
        out = (_INT64 * self._thresholds)()
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
        raw, dropped = _Tally(), _INT64()
        self._lib.bitnet_total(ctypes.byref(raw), ctypes.byref(dropped))
        return _tally(raw), dropped.value

    def _tallies(self, of_ops: bool) -> list[Tally]:
        def read(out: Any, room: int) -> int:
            count: int = self._lib.bitnet_tallies(of_ops, out, room)
            return count

        return [_tally(raw) for raw in _read(read, _Tally)]

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


def _tally(raw: _Tally) -> Tally:
    return Tally(*(getattr(raw, name) for name, *_ in _Tally._fields_))


def _read(function: Any, kind: type[ctypes.Structure]) -> Any:
    """Read a list whose length may grow between two calls."""
    room = function(None, 0)
    while True:
        room = room + room // 8 + 64
        out = (kind * room)()
        count = function(out, room)
        if count <= room:
            return out[:count]
        room = count


_lib: Any = None
_lock = threading.Lock()


def _load() -> Any:
    global _lib
    with _lock:
        if _lib is None:
            _lib = bind(str(library()))
    return _lib


def bind(path: str) -> Any:
    """Load a compiled tracker and declare its functions.

    They run with the GIL held: each takes less time than giving it up would, and none waits for
    a thread that wants it. The one that sleeps is taken from a second handle that gives it up.
    """
    lib: Any = ctypes.PyDLL(path)
    lib.bitnet_install.argtypes = [_INT64, _INT32]
    lib.bitnet_add.argtypes = [ctypes.c_void_p, _INT64, _INT32, ctypes.c_char_p]
    lib.bitnet_add.restype = _INT64
    lib.bitnet_remove.argtypes = [ctypes.c_void_p, _INT64]
    lib.bitnet_crossings.argtypes = [ctypes.c_void_p, _INT64]
    lib.bitnet_knows.argtypes = [ctypes.c_void_p]
    for name in ("bitnet_tallies", "bitnet_live", "bitnet_events", "bitnet_overhead"):
        getattr(lib, name).restype = _INT64
    lib.bitnet_tallies.argtypes = [_INT32, ctypes.c_void_p, _INT64]
    lib.bitnet_live.argtypes = lib.bitnet_events.argtypes = [ctypes.c_void_p, _INT64]
    lib.bitnet_op_name.argtypes = [_INT32, ctypes.c_char_p, _INT64]
    lib.bitnet_set_thresholds.argtypes = [ctypes.c_void_p, _INT64]
    lib.bitnet_stack.restype = ctypes.py_object
    sleeping = ctypes.CDLL(path)
    sleeping.bitnet_wait_crossing.argtypes = [_INT64, ctypes.c_double]
    sleeping.bitnet_wait_crossing.restype = _INT64
    lib.bitnet_wait_crossing = sleeping.bitnet_wait_crossing
    return lib
