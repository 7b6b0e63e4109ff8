"""Which kernels were compiled while something ran, and how long it took.

A backend that compiles at the first call makes the first token wait. It registers what makes it
speak (:func:`register_compiler`), and says of each kernel that it has compiled what and how long
(:func:`note`). Who wants to know listens for a while (:func:`noting`); until somebody does, nothing
is hooked into anything.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """A kernel, and the seconds that its compilation took."""

    kernel: str
    seconds: float


_listeners: list[Callable[[], None]] = []
_thread = threading.local()


def register_compiler(listen: Callable[[], None]) -> None:
    """Have ``listen`` called before somebody listens; it sees to it that :func:`note` is called.

    Args:
        listen: May be called any number of times.
    """
    if listen not in _listeners:
        _listeners.append(listen)


@contextlib.contextmanager
def noting(found: list[Compiled]) -> Iterator[None]:
    """Add to ``found`` what this thread compiles while the block runs."""
    for listen in _listeners:
        listen()
    before: tuple[list[Compiled], ...] = getattr(_thread, "records", ())
    _thread.records = (*before, found)
    try:
        yield
    finally:
        _thread.records = before


def note(kernel: str, seconds: float) -> None:
    """Say that this thread has compiled a kernel, in so many seconds."""
    logger.info("compiled %s in %.2f s", kernel, seconds)
    for record in getattr(_thread, "records", ()):
        record.append(Compiled(kernel, seconds))
