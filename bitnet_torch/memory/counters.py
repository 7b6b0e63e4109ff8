"""What a pool counts on one device. Every number changes under the pool's lock."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class JointCounters:
    """Counters of all devices of a pool together.

    Attributes:
        leased: Bytes that leases asked for.
        peak_leased: Largest ``leased``, which no sum of the devices' own peaks tells.
    """

    leased: int = 0
    peak_leased: int = 0


@dataclass(slots=True)
class DeviceCounters:
    """Counters of one device.

    Attributes:
        joint: Those of all devices of the pool, the same object for each.
        leased: Bytes that leases asked for.
        held: Bytes of the blocks behind live leases.
        cached: Bytes of blocks waiting for reuse.
        pending: Bytes of blocks that another stream may still use.
        live: Leases that are out.
        peak_leased: Largest ``leased``.
        peak_reserved: Largest ``reserved``.
        peak_live: Largest ``live``.
        total_leased: Bytes of all leases ever taken.
        total_released: Bytes of all leases that have ended.
        hits: Leases served from the cache.
        misses: Leases, granted or refused, that the cache could not serve.
        failed: Refused ones among ``misses``: over a limit, or no memory to be had.
        releases: Leases that have ended.
        dropped: Of them, those that nobody released.
        evictions: Blocks given back because the cache was full.
    """

    joint: JointCounters = field(default_factory=JointCounters)
    leased: int = 0
    held: int = 0
    cached: int = 0
    pending: int = 0
    live: int = 0
    peak_leased: int = 0
    peak_reserved: int = 0
    peak_live: int = 0
    total_leased: int = 0
    total_released: int = 0
    hits: int = 0
    misses: int = 0
    failed: int = 0
    releases: int = 0
    dropped: int = 0
    evictions: int = 0

    @property
    def reserved(self) -> int:
        """Bytes that the pool has from the system."""
        return self.held + self.cached + self.pending

    def claim(self, nbytes: int, block: int) -> None:
        """Count a lease as granted."""
        joint = self.joint
        joint.leased += nbytes
        if joint.leased > joint.peak_leased:
            joint.peak_leased = joint.leased
        self.leased += nbytes
        self.held += block
        self.live += 1
        self.total_leased += nbytes
        if self.leased > self.peak_leased:
            self.peak_leased = self.leased
        if self.live > self.peak_live:
            self.peak_live = self.live
        reserved = self.held + self.cached + self.pending
        if reserved > self.peak_reserved:
            self.peak_reserved = reserved

    def peaks(self) -> tuple[int, int, int, int]:
        """Return the peaks, for :meth:`unclaim`."""
        return self.peak_leased, self.peak_reserved, self.peak_live, self.joint.peak_leased

    def unclaim(self, nbytes: int, block: int, before: tuple[int, int, int, int]) -> None:
        """Take back a claim that no memory could be found for; ``before`` are the peaks."""
        self.joint.leased -= nbytes
        self.joint.peak_leased = max(before[3], self.joint.leased)
        self.leased -= nbytes
        self.held -= block
        self.live -= 1
        self.total_leased -= nbytes
        self.failed += 1
        peaks = (self.leased, self.reserved, self.live)
        self.peak_leased, self.peak_reserved, self.peak_live = map(max, before[:3], peaks)

    def end(self, nbytes: int, block: int) -> None:
        """Count a lease as ended."""
        self.joint.leased -= nbytes
        self.leased -= nbytes
        self.held -= block
        self.live -= 1
        self.total_released += nbytes
        self.releases += 1

    def reset_peak(self) -> None:
        """Let the peaks start anew from what is there."""
        self.peak_leased, self.peak_reserved, self.peak_live = self.leased, self.reserved, self.live
