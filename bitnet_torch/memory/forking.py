"""Locks across ``fork``: the child gets them free, and what they guard whole.

A fork copies a lock as it is; one that another thread held would never be released in the child.
All pools' locks are therefore taken before a fork and released on both sides. Nothing is
registered before the first pool is made.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_torch.memory.pool import HybridMemoryPool

_locks: weakref.WeakKeyDictionary[HybridMemoryPool, threading.Lock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()
_taken: list[threading.Lock] = []
_registered = False


def remember(pool: HybridMemoryPool, lock: threading.Lock) -> None:
    """Keep ``lock`` sound across forks for as long as ``pool`` lives."""
    global _registered
    with _guard:
        _locks[pool] = lock
        if not _registered and hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_take, after_in_parent=_free, after_in_child=_free)
        _registered = True


def pools() -> list[HybridMemoryPool]:
    """Return every pool of this process."""
    with _guard:
        return list(_locks)


def _take() -> None:
    _guard.acquire()
    # Threads hold at most one of them at a time, so any order will do.
    for lock in list(_locks.values()):
        lock.acquire()
        _taken.append(lock)


def _free() -> None:
    while _taken:
        _taken.pop().release()
    _guard.release()
