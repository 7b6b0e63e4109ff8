"""Callbacks at numbers of live bytes, called from a thread that sleeps until one is crossed.

They must not run where memory is being allocated: the allocator may hold locks that the callback
wants. So the counting side only counts crossings, and this side calls.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitnet_torch.memory.backend import Backend
from bitnet_torch.memory.hooks import CallbackError, Unregister, call_contained

# Between two looks at whether it shall end; crossings wake it at once.
_NAP_S = 1.0


@dataclass(frozen=True)
class ThresholdEvent:
    """A crossing.

    Attributes:
        nbytes: The threshold.
        current: Live bytes when the callback was called, which may be fewer again.
    """

    nbytes: int
    current: int


class ThresholdWatch:
    """Watches the live bytes that a backend counts on the CPU.

    Args:
        backend: Counts.
        errors: Where failures of callbacks are kept.
    """

    def __init__(self, backend: Backend, errors: deque[CallbackError]) -> None:
        self._backend = backend
        self._errors = errors
        self._lock = threading.Lock()
        self._callbacks: dict[object, tuple[int, Callable[[ThresholdEvent], Any]]] = {}
        self._called: list[int] = []
        self._thread: threading.Thread | None = None
        self._ended = False

    def add(self, nbytes: int, callback: Callable[[ThresholdEvent], Any]) -> Unregister:
        """Call ``callback`` each time that live bytes rise to ``nbytes``."""
        key = object()
        with self._lock:
            self._callbacks[key] = (nbytes, callback)
            self._watch()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="memory-threshold", daemon=True
                )
                self._thread.start()

        def unregister() -> None:
            with self._lock:
                if self._callbacks.pop(key, None) is not None:
                    self._watch()

        return unregister

    def stop(self) -> None:
        """End the thread, after the callbacks of crossings that have been counted."""
        self._ended = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        self._backend.set_thresholds([nbytes for nbytes, _ in self._callbacks.values()])
        self._called = [0] * len(self._callbacks)

    def _run(self) -> None:
        while not self._ended:
            self._backend.wait_crossing(_NAP_S)
            self._call_due()

    def _call_due(self) -> None:
        with self._lock:
            counts = self._backend.crossings()
            due = [
                pair
                for pair, now, called in zip(
                    self._callbacks.values(), counts, self._called, strict=True
                )
                if now > called
            ]
            self._called = counts
        for nbytes, callback in due:
            event = ThresholdEvent(nbytes, self._backend.tally("cpu").current)
            call_contained(callback, self._errors, event)
