"""One look at a device: its own allocator, the running tracker and the pool, in one record."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from bitnet_torch.memory import forking
from bitnet_torch.memory.active import active_backend
from bitnet_torch.memory.counters import DeviceCounters
from bitnet_torch.memory.native_counts import NativeCounts, native_counts
from bitnet_torch.memory.process import resident_bytes
from bitnet_torch.memory.stats import MemoryStats

if TYPE_CHECKING:
    from bitnet_torch.memory.pool import HybridMemoryPool


def stats_of(pool: HybridMemoryPool, device: torch.device) -> MemoryStats:
    """Return the memory of a device as ``pool`` sees it."""
    name = str(device)
    own, largest = pool.counted(name)
    native = native_counts(device) or _tracked(name)
    if native is None:
        # Nobody counts PyTorch's tensors: what is left is what this pool has handed out.
        native = NativeCounts("leases", exact=False)
        allocated: int | None = own.leased
    else:
        cached = sum(other.counted(name)[0].cached for other in forking.pools())
        allocated = None if native.allocated is None else native.allocated - cached
    limit, limit_source = _limit(pool, name)
    return MemoryStats(
        **asdict(replace(native, allocated=allocated, largest_free_block=largest)),
        device=name,
        pool_allocated=own.leased,
        pool_peak=own.peak_leased,
        pool_reserved=own.reserved,
        live_leases=own.live,
        cached=own.cached,
        pending=own.pending,
        hits=own.hits,
        misses=own.misses,
        failed=own.failed,
        evictions=own.evictions,
        dropped=own.dropped,
        internal_fragmentation=1 - own.leased / own.held if own.held else None,
        idle_fraction=_idle(native, own),
        limit=limit,
        limit_source=limit_source,
        process_rss=resident_bytes(),
    )


def _tracked(device: str) -> NativeCounts | None:
    """Return what a running tracker counts on the CPU; None if there is none."""
    backend = active_backend()
    if backend is None or device != "cpu":
        return None
    tally = backend.tally(device)
    return NativeCounts(
        backend.source,
        backend.exact,
        allocated=tally.current,
        peak_allocated=tally.peak,
        requested=tally.current,
        total_allocated=tally.allocated,
        total_freed=tally.freed,
        num_allocs=tally.allocs,
        num_frees=tally.frees,
    )


def _limit(pool: HybridMemoryPool, device: str) -> tuple[int | None, str | None]:
    hard = pool.limits(device)[1]
    if hard is not None:
        return hard, "pool"
    if device == "meta":
        return None, None
    usage = pool.pressure(device).read()
    return usage.limit, usage.source


def _idle(native: NativeCounts, own: DeviceCounters) -> float | None:
    """Return the share of what the allocator holds that nothing lives in."""
    if native.reserved is not None and native.allocated is not None:
        return 1 - native.allocated / native.reserved if native.reserved else None
    return own.cached / own.reserved if own.reserved else None
