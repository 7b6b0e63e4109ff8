"""Callbacks: kept in one place, called without any lock, contained when they raise.

A callback may take and release leases of the pool that calls it. One that raises is logged with
its traceback and kept in ``errors``; neither the allocation nor other callbacks suffer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_KEPT_ERRORS = 100

Unregister = Callable[[], None]


@dataclass(frozen=True)
class LeaseEvent:
    """What an allocation or free callback is told.

    Attributes:
        kind: ``"allocate"`` or ``"free"``.
        device: Where.
        nbytes: Bytes asked for.
        tag: Of the lease.
    """

    kind: str
    device: str
    nbytes: int
    tag: str


@dataclass(frozen=True)
class CallbackError:
    """A callback that raised.

    Attributes:
        callback: Its name.
        error: Type and message, without the traceback, which would keep tensors alive.
    """

    callback: str
    error: str


class Callbacks:
    """Some callbacks that take the same arguments.

    Args:
        errors: Where failures are kept, shared by several of these.
    """

    def __init__(self, errors: deque[CallbackError]) -> None:
        self._errors = errors
        self._callbacks: dict[object, Callable[..., Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def add(self, callback: Callable[..., Any]) -> Unregister:
        """Add a callback; return what removes it again, any number of times."""
        key = object()
        self._callbacks[key] = callback

        def unregister() -> None:
            self._callbacks.pop(key, None)

        return unregister

    def call(self, *args: Any) -> None:
        """Call all that were there when this began, in the order in which they were added."""
        for callback in list(self._callbacks.values()):
            call_contained(callback, self._errors, *args)


def new_errors() -> deque[CallbackError]:
    """Return room for the last failures."""
    return deque(maxlen=_KEPT_ERRORS)


def call_contained(callback: Callable[..., Any], errors: deque[CallbackError], *args: Any) -> None:
    """Call ``callback``; log and keep what it raises."""
    try:
        callback(*args)
    except Exception as error:  # contained: a user's callback must not break an allocation
        name = getattr(callback, "__qualname__", repr(callback))
        errors.append(CallbackError(name, f"{type(error).__name__}: {error}"))
        logger.exception("memory callback %s failed", name)
