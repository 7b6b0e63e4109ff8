"""Which size a block gets: small and large classes, each at most an eighth larger than asked for.

A power of two is cut into eight steps. Steps are at least 512 bytes up to ``SMALL_LIMIT`` and a
page above it: small blocks come from the C library's heap, large ones from pages of their own.
"""

from __future__ import annotations

SMALL_LIMIT = 1 << 20
SMALL_STEP = 512
PAGE = 4096
_STEPS_LOG2 = 3


def size_class(nbytes: int) -> int:
    """Return the size in bytes of the block that serves ``nbytes`` >= 1.

    Monotone and idempotent; wastes less than ``max(512, nbytes / 8)`` bytes, a page for ``nbytes``
    above ``SMALL_LIMIT``.
    """
    granule = SMALL_STEP if nbytes <= SMALL_LIMIT else PAGE
    step = max(1 << max((nbytes - 1).bit_length() - 1 - _STEPS_LOG2, 0), granule)
    return -(-nbytes // step) * step
