"""What the storage-level trackers report, whichever of them counted."""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_torch.memory.sites import Site, is_inner

OUTSIDE = ""


@dataclass(slots=True)
class Tally:
    """Bytes and counts of something.

    Attributes:
        current: Live bytes.
        peak: Largest ``current``.
        allocated: Bytes ever allocated.
        freed: Bytes ever freed.
        allocs: Allocations ever made.
        frees: Of them, those that ended.
    """

    current: int = 0
    peak: int = 0
    allocated: int = 0
    freed: int = 0
    allocs: int = 0
    frees: int = 0

    def add(self, nbytes: int, count: int = 1) -> None:
        """Count an allocation, or with ``count`` 0 the growth of one."""
        self.current += nbytes
        self.allocated += nbytes
        self.allocs += count
        if self.current > self.peak:
            self.peak = self.current

    def remove(self, nbytes: int, count: int = 1) -> None:
        """Count the end of an allocation, or its shrinking."""
        self.current -= nbytes
        self.freed += nbytes
        self.frees += count


@dataclass(frozen=True)
class Allocation:
    """A live storage.

    Attributes:
        number: Counts allocations; a later one has a larger number.
        address: Where it lies; 0 if that cannot be asked.
        nbytes: Its size.
        device: Where.
        op: The operator that made it; empty if unknown.
        module: Qualified name of the attached module that was running; empty outside.
        born_ns: When, on a clock that only grows.
        stack: Lines that led to it, innermost first; empty unless stacks are recorded.
    """

    number: int
    address: int
    nbytes: int
    device: str
    op: str
    module: str
    born_ns: int
    stack: tuple[Site, ...] = ()

    @property
    def site(self) -> Site | None:
        """The innermost line that is the program's own; None without a stack."""
        for site in self.stack:
            if not is_inner(site.file):
                return site
        return self.stack[0] if self.stack else None


@dataclass(frozen=True)
class StorageEvent:
    """An allocation, a free or a change of size.

    Attributes:
        time_ns: When.
        address: Of the storage; with ``number`` 0 events pair by address, in order.
        change: Bytes more (positive) or fewer.
        device: Where.
        op: The operator that made the storage.
        module: The module that made it.
        thread: Small number of the thread.
        stack: Lines that led to an allocation, innermost first.
    """

    time_ns: int
    address: int
    change: int
    device: str
    op: str
    module: str
    thread: int
    stack: tuple[Site, ...] = ()


@dataclass(frozen=True)
class ScopeStats:
    """What happened while a scope was open.

    Attributes:
        name: Of the scope.
        current: Bytes more (or fewer) live than when it was opened.
        peak: Largest ``current``.
        total: Bytes allocated.
        count: Allocations.
    """

    name: str
    current: int
    peak: int
    total: int
    count: int
