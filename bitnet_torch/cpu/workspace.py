"""The kernels' working memory: leases of the process's pool, tagged ``cpu workspace``.

A thread that computes keeps a buffer of at most a few MiB for each kind of kernel; ``scratch.hpp``
asks for it here when it has to grow, in that thread, and puts it on a list when the thread ends.
The list is read before anything else is handed out and before the pool is looked at. So the
pool's limits hold for it, and the tracker sees it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable

from bitnet_torch.errors import BitNetError
from bitnet_torch.memory.lease import Lease
from bitnet_torch.memory.pool import HybridMemoryPool

TAG = "cpu workspace"
_ROOM = 64

_Take = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int64)


class Workspaces:
    """Hands out working memory to a loaded library.

    Args:
        ended: The library's ``bitnet_cpu_ended_loans``.

    Attributes:
        refusal: Why the last piece that was asked for could not be had; empty if it could.
    """

    def __init__(self, ended: Callable[..., int]) -> None:
        self.refusal = ""
        self._ended = ended
        # The lease of each address, and the thread that asked for it.
        self._leases: dict[int, tuple[Lease, int]] = {}
        self._orphans: list[int] = []
        self._known = False

    def take(self, nbytes: int) -> int | None:
        """Return the address of that many bytes; None if there are none. Called by the library."""
        try:
            pool = self._pool()
            self.take_back()
            lease = pool.allocate(nbytes, tag=TAG)
        except (BitNetError, MemoryError, RuntimeError) as error:
            # An exception cannot pass through the kernel: it returns, and its launcher raises.
            self.refusal = str(error)
            return None
        self.refusal = ""
        address = lease.tensor.data_ptr()
        self._leases[address] = (lease, threading.get_ident())
        return address

    def take_back(self) -> None:
        """Release what no thread uses any more."""
        ended, self._orphans = self._orphans, []
        out = (ctypes.c_void_p * _ROOM)()
        while count := self._ended(out, _ROOM):
            ended += [address for address in out[:count] if address is not None]
        for address in ended:
            found = self._leases.pop(address, None)
            if found is not None:
                found[0].release()

    def _pool(self) -> HybridMemoryPool:
        """Return the pool of the process, which from the first call on asks for what has ended."""
        pool = HybridMemoryPool.instance()
        if not self._known:
            self._known = True
            pool.add_reclaimer(self.take_back)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._forget_threads)
        return pool

    def _forget_threads(self) -> None:
        """Note, in the child of a fork, the buffers of threads that it does not have."""
        me = threading.get_ident()
        self._orphans += [at for at, (_, thread) in self._leases.items() if thread != me]


_connected: dict[int, Workspaces] = {}


def connect(library: ctypes.CDLL) -> None:
    """Let a library have its working memory from the pool."""
    if library._handle in _connected:
        return
    ended = library.bitnet_cpu_ended_loans
    ended.argtypes, ended.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_int64
    workspaces = _connected[library._handle] = Workspaces(ended)
    take = _Take(workspaces.take)
    # C code holds a pointer to it until the process is gone, which is later than Python's end.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(take))
    library.bitnet_cpu_take_memory_from(take)


def refusal() -> str:
    """Return why working memory could not be had the last time that it was asked for."""
    return "; ".join(w.refusal for w in _connected.values() if w.refusal)
