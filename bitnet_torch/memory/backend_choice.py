"""Who counts the CPU: the exact backend where it can be had, the other with the reason where not.

``"allocator"`` is exact: it stands in front of PyTorch's CPU allocator, and is compiled when it is
first wanted, which takes some seconds once. ``"dispatch"`` needs no compiler, sees only what
operators of the calling thread return, and is slow.
"""

from __future__ import annotations

import logging

from bitnet_torch.errors import BackendUnavailableError
from bitnet_torch.memory.backend import Backend
from bitnet_torch.memory.dispatch import DispatchBackend
from bitnet_torch.memory.native import AllocatorBackend
from bitnet_torch.memory.native_build import NativeUnavailable

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "allocator", "dispatch")


def choose(wanted: str, max_events: int, depth: int) -> tuple[Backend, str]:
    """Return the backend, and why it is not the exact one.

    Args:
        wanted: One of ``BACKENDS``; ``"auto"`` takes the first that can be had.
        max_events: Events kept, the last ones.
        depth: Lines remembered for each allocation; 0 for none.

    Raises:
        BackendUnavailableError: ``"allocator"`` cannot be had here.
    """
    if wanted == "dispatch":
        return DispatchBackend(max_events, depth), "the dispatch backend was asked for by name"
    try:
        return AllocatorBackend(max_events, depth), ""
    except NativeUnavailable as error:
        if wanted == "allocator":
            raise BackendUnavailableError(f"the exact memory tracker: {error}") from error
        logger.warning("memory is tracked inexactly: %s", error)
        return DispatchBackend(max_events, depth), str(error)
