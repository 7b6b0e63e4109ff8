"""Memory that checks who uses it.

Global memory: a load must lie inside one tensor that was given for reading; every byte that was
given for writing is written exactly once, by any program. Shared memory: between two barriers
only one warp touches a byte that somebody writes.
"""

from __future__ import annotations

import numpy as np

GAP = 256  # between tensors, so that a step too far is seen


class AccessError(Exception):
    """A kernel touched what it must not."""


class GlobalMemory:
    """Addresses of all programs; nothing is readable but what :meth:`place` was told."""

    def __init__(self) -> None:
        self._bytes = np.zeros(GAP, np.uint8)
        self._readable = np.zeros(GAP, bool)
        # How often a byte may still be written.
        self._writes = np.zeros(GAP, np.int8)

    def place(self, data: np.ndarray, *, written: bool = False, shift: int = 0) -> int:
        """Put the bytes of ``data`` at a multiple of 256, plus ``shift``; return the address."""
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        at = len(self._bytes) + shift
        size = -(-(shift + flat.size + 1) // GAP) * GAP + GAP
        end = at + flat.size
        for name, fill in (("_bytes", 0xA5), ("_readable", False), ("_writes", 0)):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.full(size, fill, old.dtype)]))
        self._bytes[at:end] = flat
        self._readable[at:end] = not written
        self._writes[at:end] = int(written)
        return at

    def load(self, address: np.ndarray, width: int) -> np.ndarray:
        """Return the ``width`` bytes at each address as (lanes, width)."""
        at = self._at(address, width)
        if not self._readable[at].all():
            raise AccessError(f"a load of {width} bytes outside of what may be read")
        return self._bytes[at]

    def store(self, address: np.ndarray, data: np.ndarray) -> None:
        """Write the bytes (lanes, width) to each address."""
        at = self._at(address, data.shape[1])
        np.subtract.at(self._writes, at.reshape(-1), 1)
        if (self._writes[at] < 0).any():
            raise AccessError("a store outside of the outputs, or a second one to a byte")
        self._bytes[at] = data

    def written(self, address: int, like: np.ndarray) -> np.ndarray:
        """Return what was written at ``address``, in the shape and dtype of ``like``."""
        end = address + like.nbytes
        if self._writes[address:end].any():
            raise AccessError("a part of an output was never written")
        return self._bytes[address:end].view(like.dtype).reshape(like.shape).copy()

    def _at(self, address: np.ndarray, width: int) -> np.ndarray:
        if (address % width).any():
            raise AccessError(f"an access of {width} bytes at an address that is no multiple of it")
        at = address[:, None] + np.arange(width)
        if at.size and (at.min() < 0 or at.max() >= len(self._bytes)):
            raise AccessError("an address outside of all memory")
        return at


class SharedMemory:
    """What the lanes of one program exchange."""

    def __init__(self, size: int) -> None:
        self._bytes = np.full(size, 0xA5, np.uint8)
        self._epoch = 1
        # The last interval between barriers in which a byte was written and read, and by whom.
        self._written, self._writer = np.zeros(size, int), np.full(size, -1)
        self._read, self._reader = np.zeros(size, int), np.full(size, -1)

    def barrier(self) -> None:
        """All lanes have come this far."""
        self._epoch += 1

    def load(self, address: np.ndarray, width: int, warp: np.ndarray) -> np.ndarray:
        """Return the ``width`` bytes at each address, for lanes of these warps."""
        at, warp = address[:, None] + np.arange(width), warp[:, None]
        if (self._written[at] == 0).any():
            raise AccessError("shared memory is read that nobody has written")
        if ((self._written[at] == self._epoch) & (self._writer[at] != warp)).any():
            raise AccessError("shared memory is read before a barrier after another warp's store")
        again = (self._read[at] == self._epoch) & (self._reader[at] != warp)
        # -1 is several, which is nobody's own.
        self._reader[at] = np.where(again, -1, warp)
        self._read[at] = self._epoch
        return self._bytes[at]

    def store(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        """Write the bytes (lanes, width) to each address, for lanes of these warps."""
        at, warp = address[:, None] + np.arange(data.shape[1]), warp[:, None]
        seen = (self._read[at] == self._epoch) & (self._reader[at] != warp)
        written = (self._written[at] == self._epoch) & (self._writer[at] != warp)
        if seen.any() or written.any():
            raise AccessError("shared memory is written before a barrier after another warp's use")
        self._written[at], self._writer[at] = self._epoch, np.broadcast_to(warp, at.shape)
        self._bytes[at] = data
