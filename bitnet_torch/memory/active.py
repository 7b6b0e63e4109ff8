"""The storage-level tracker that is running, of which a process has at most one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from bitnet_torch.errors import ConfigurationError

if TYPE_CHECKING:
    from bitnet_torch.memory.backend import Backend

_lock = threading.Lock()
_active: Backend | None = None


def active_backend() -> Backend | None:
    """Return it; None if no tracker is at level ``track`` or ``full``."""
    return _active


def claim(backend: Backend) -> None:
    """Make a backend the running one.

    Raises:
        ConfigurationError: There is one already.
    """
    global _active
    with _lock:
        if _active is not None:
            raise ConfigurationError(
                "a memory tracker of this process is running already; stop it first, or use its "
                "scope() for a part of the program"
            )
        _active = backend


def resign(backend: Backend) -> None:
    """End that; nothing happens if another is the running one."""
    global _active
    with _lock:
        if _active is backend:
            _active = None
