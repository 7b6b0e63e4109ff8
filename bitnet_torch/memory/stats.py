"""What is known about the memory of one device at one moment. Unknown is ``None``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryStats:
    """The memory of a device.

    Attributes:
        device: Its name.
        source: Who counted ``allocated``: ``"cuda"``, ``"mps"``, ``"accelerator"`` (PyTorch's own
            allocator), ``"cpu-allocator"`` or ``"dispatch"`` (a running tracker), or
            ``"leases"`` (this pool only).
        exact: Whether ``source`` counts every byte that PyTorch has allocated there. The tracker's
            sources count from the moment it was started, and what was registered with it.
        allocated: Live bytes: of all tensors, cached blocks of pools excepted; of leases only
            where ``source`` is ``"leases"``.
        peak_allocated: Largest figure that ``source`` had, cached blocks of pools included.
        requested: Bytes that were asked for, before the allocator rounded them up.
        reserved: Bytes that the allocator has from the device, in use or not.
        peak_reserved: Largest ``reserved``.
        total_allocated: Bytes ever allocated.
        total_freed: Bytes ever freed.
        num_allocs: Allocations ever made.
        num_frees: Of them, those that ended.
        num_ooms: Requests that the device could not serve.
        largest_free_block: Largest cached block of the pool.
        inactive_split: Bytes of free pieces of blocks that are partly in use.
        pool_allocated: Bytes that live leases asked for.
        pool_peak: Largest ``pool_allocated``.
        pool_reserved: Bytes of all blocks of the pool.
        live_leases: Leases that are out.
        cached: Bytes of blocks that wait in the pool for reuse.
        pending: Bytes of blocks that another stream may still be using.
        hits: Leases served from the pool's cache.
        misses: Leases, granted or refused, that it could not serve.
        failed: Leases refused, over a limit or for want of memory.
        evictions: Blocks given back because the cache was full.
        dropped: Leases that nobody released and that came back by themselves.
        internal_fragmentation: Share of the bytes of leased blocks that nobody asked for.
        idle_fraction: Share of ``reserved`` that nothing lives in.
        limit: Bytes that may be used; None: unlimited or unknown.
        limit_source: Who sets it: ``"pool"``, ``"cgroup"``, ``"host"``, ``"fraction"``,
            ``"device"``, ``"recommended"``.
        process_rss: Resident bytes of this process.
    """

    device: str
    source: str
    exact: bool
    allocated: int | None
    peak_allocated: int | None
    requested: int | None
    reserved: int | None
    peak_reserved: int | None
    total_allocated: int | None
    total_freed: int | None
    num_allocs: int | None
    num_frees: int | None
    num_ooms: int | None
    largest_free_block: int | None
    inactive_split: int | None
    pool_allocated: int
    pool_peak: int
    pool_reserved: int
    live_leases: int
    cached: int
    pending: int
    hits: int
    misses: int
    failed: int
    evictions: int
    dropped: int
    internal_fragmentation: float | None
    idle_fraction: float | None
    limit: int | None
    limit_source: str | None
    process_rss: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return asdict(self)
