"""Words for the moment when memory has run out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitnet_torch.memory.text_table import shown_bytes

if TYPE_CHECKING:
    from bitnet_torch.memory.pool import HybridMemoryPool
    from bitnet_torch.memory.stats import MemoryStats
    from bitnet_torch.memory.tracker import MemoryTracker

_ROWS = 5


def explain_oom(tracker: MemoryTracker, pool: HybridMemoryPool, error: BaseException | None) -> str:
    """Say what fills the memory; see :meth:`MemoryTracker.explain_oom`."""
    lines = []
    if error is not None:
        lines.append(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    for device in pool.used_devices() or [pool.config.device]:
        lines += _device(pool.get_stats(device))
    lines += _ranking("leases", {tag: n for tag, (n, _) in pool.lease_tags().items()})
    if tracker.backend is None:
        lines.append(
            "which modules and lines hold it is not known: no tracker was running; "
            "start one with tracker.start('full') before the next run"
        )
        return "\n".join(lines)
    snapshot = tracker.snapshot()
    for key in ("module", "op", "site"):
        lines += _ranking(f"{key}s", {g.key: g.nbytes for g in snapshot.group(key)})
    return "\n".join(lines)


def _device(stats: MemoryStats) -> list[str]:
    allocated = "unknown" if stats.allocated is None else shown_bytes(stats.allocated)
    lines = [
        f"{stats.device}: {allocated} live ({stats.source}{'' if stats.exact else ', inexact'}), "
        f"of them leases {shown_bytes(stats.pool_allocated)}; "
        f"cached in the pool {shown_bytes(stats.cached)}, which pool.trim() gives back"
    ]
    if stats.limit is not None:
        lines.append(f"  limit {shown_bytes(stats.limit)}, set by {stats.limit_source}")
    if stats.idle_fraction:
        lines.append(f"  {stats.idle_fraction:.0%} of what the allocator holds is idle")
    if stats.inactive_split:
        lines.append(f"  {shown_bytes(stats.inactive_split)} lie in pieces of blocks in use")
    if stats.failed:
        lines.append(f"  {stats.failed} leases were refused so far")
    return lines


def _ranking(title: str, nbytes: dict[str, int]) -> list[str]:
    order = sorted(nbytes.items(), key=lambda item: -item[1])[:_ROWS]
    shown = [f"  {shown_bytes(count):>11}  {name or '(no name)'}" for name, count in order]
    return [f"largest {title}:", *shown] if shown else []
