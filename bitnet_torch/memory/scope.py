"""Counters of a part of the program."""

from __future__ import annotations

from bitnet_torch.memory.backend import Backend
from bitnet_torch.memory.records import ScopeStats


class Scope:
    """Counts until it is closed; readable before and after.

    Args:
        name: For reports.
        backend: Counts.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        self.name = name
        self._backend = backend
        self._key: object | None = backend.open_scope()
        self._final: ScopeStats | None = None

    def stats(self) -> ScopeStats:
        """Return the counts now, or those at the end."""
        if self._final is not None:
            return self._final
        tally = self._backend.read_scope(self._key)
        return ScopeStats(self.name, tally.current, tally.peak, tally.allocated, tally.allocs)

    def close(self) -> None:
        """End the counting."""
        self._final = self.stats()
        self._backend.close_scope(self._key)

    @property
    def current(self) -> int:
        """Bytes more (or fewer) live than at the beginning."""
        return self.stats().current

    @property
    def peak(self) -> int:
        """Largest ``current``."""
        return self.stats().peak

    @property
    def total(self) -> int:
        """Bytes allocated."""
        return self.stats().total

    @property
    def count(self) -> int:
        """Allocations."""
        return self.stats().count
