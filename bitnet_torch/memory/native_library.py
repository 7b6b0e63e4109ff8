"""The functions and records of the compiled tracker, as ctypes needs them described."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from bitnet_torch.memory.native_build import library
from bitnet_torch.memory.records import Tally

INT64 = ctypes.c_int64
INT32 = ctypes.c_int32


class RawTally(ctypes.Structure):
    """Counts, as ``Tally`` of ``books.hpp``."""

    _fields_ = [(n, INT64) for n in ("current", "peak", "allocated", "freed", "allocs", "frees")]


class RawRow(ctypes.Structure):
    """A live block, as ``Row``."""

    _fields_ = [
        *((n, INT64) for n in ("address", "nbytes", "number", "born")),
        *((n, INT32) for n in ("module", "op", "stack", "unused")),
    ]


class RawEvent(ctypes.Structure):
    """An allocation or a free, as ``Event``."""

    _fields_ = [
        *((n, INT64) for n in ("time", "address", "change")),
        *((n, INT32) for n in ("module", "op", "stack", "thread")),
    ]


def tally_of(raw: RawTally) -> Tally:
    """Return the counts as the rest of the package has them."""
    return Tally(*(getattr(raw, name) for name, *_ in RawTally._fields_))


def read_all(function: Any, kind: type[ctypes.Structure]) -> Any:
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


def load() -> Any:
    """Return the library, compiled and loaded at the first call.

    Raises:
        NativeUnavailable: It cannot be had here.
    """
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
    lib.bitnet_install.argtypes = [INT64, INT32]
    lib.bitnet_add.argtypes = [ctypes.c_void_p, INT64, INT32, ctypes.c_char_p]
    lib.bitnet_add.restype = INT64
    lib.bitnet_remove.argtypes = [ctypes.c_void_p, INT64]
    lib.bitnet_crossings.argtypes = [ctypes.c_void_p, INT64]
    lib.bitnet_knows.argtypes = [ctypes.c_void_p]
    for name in ("bitnet_tallies", "bitnet_live", "bitnet_events", "bitnet_overhead"):
        getattr(lib, name).restype = INT64
    lib.bitnet_tallies.argtypes = [INT32, ctypes.c_void_p, INT64]
    lib.bitnet_live.argtypes = lib.bitnet_events.argtypes = [ctypes.c_void_p, INT64]
    lib.bitnet_op_name.argtypes = [INT32, ctypes.c_char_p, INT64]
    lib.bitnet_set_thresholds.argtypes = [ctypes.c_void_p, INT64]
    lib.bitnet_stack.restype = ctypes.py_object
    sleeping = ctypes.CDLL(path)
    sleeping.bitnet_wait_crossing.argtypes = [INT64, ctypes.c_double]
    sleeping.bitnet_wait_crossing.restype = INT64
    lib.bitnet_wait_crossing = sleeping.bitnet_wait_crossing
    return lib
