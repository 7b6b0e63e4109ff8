"""What a pool's tracker says of the leases: the counters of the pool and the rows behind them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bitnet_torch.memory.blocks import Block
from bitnet_torch.memory.config import TrackingConfig
from bitnet_torch.memory.counters import DeviceCounters
from bitnet_torch.memory.lease_table import LeaseRow, LeaseTable
from bitnet_torch.memory.patterns import Pattern, find_patterns
from bitnet_torch.memory.pressure import PressureLevel

if TYPE_CHECKING:
    from bitnet_torch.memory.pool import HybridMemoryPool

_CALIBRATION = 200


@dataclass(frozen=True)
class TrackerMetrics:
    """Metrics of the leases of one pool.

    Attributes:
        level: Of the tracker.
        active_allocations: Leases that are out.
        current_bytes: Their bytes.
        peak_bytes: Largest ``current_bytes``.
        device_bytes: Bytes on each device.
        pressure: Of the pool's device; None if it is not watched.
        operations: Leases that the pool has granted, and those that have ended.
        overhead_bytes: Bytes of every structure that records them.
        overhead_fraction: Share of the time since the oldest row that recording took, from the
            cost of one, measured now; None if nothing is recorded.
        patterns: What recurs; empty unless ``TrackingConfig.patterns``.
        suspects: Leases older than ``TrackingConfig.leak_age_s``; empty unless ``leaks``.
    """

    level: str
    active_allocations: int
    current_bytes: int
    peak_bytes: int
    device_bytes: dict[str, int]
    pressure: PressureLevel | None
    operations: int
    overhead_bytes: int
    overhead_fraction: float | None
    patterns: tuple[Pattern, ...]
    suspects: tuple[LeaseRow, ...]


def metrics_of(
    pool: HybridMemoryPool, level: str, table: LeaseTable | None, rows: list[LeaseRow]
) -> TrackerMetrics:
    """Return the metrics of a pool, from its counters and the rows of its tracker."""
    counters = {device: pool.counted(device)[0] for device in pool.used_devices()}
    config = table.config if table is not None else TrackingConfig.minimal()
    watched = config.pressure
    oldest = time.perf_counter_ns() - round(config.leak_age_s * 1e9)
    suspects = [row for row in rows if row.ended_ns is None and row.born_ns <= oldest]
    return TrackerMetrics(
        level=level,
        active_allocations=sum(c.live for c in counters.values()),
        current_bytes=sum(c.leased for c in counters.values()),
        peak_bytes=pool.joint_peak(),
        device_bytes={device: c.leased for device, c in counters.items()},
        pressure=pool.pressure().poll() if watched else None,
        operations=sum(_operations(c) for c in counters.values()),
        overhead_bytes=table.overhead_bytes(pool.blocks()) if table is not None else 0,
        overhead_fraction=_overhead(table, rows) if table is not None else None,
        patterns=find_patterns(rows) if config.patterns else (),
        suspects=tuple(suspects) if config.leaks else (),
    )


def _operations(counters: DeviceCounters) -> int:
    return counters.hits + counters.misses - counters.failed + counters.releases


def _overhead(table: LeaseTable, rows: list[LeaseRow]) -> float:
    """Return the share of time that recording took, from the cost of an operation on a copy."""
    trial, block = LeaseTable(table.config), Block(("cpu", 1, 0, False), torch.empty(0))
    start = time.perf_counter_ns()
    for _ in range(_CALIBRATION):
        trial.begin(block)
        if block.born_ns:
            trial.end(block)
    cost = (time.perf_counter_ns() - start) / _CALIBRATION
    # The rows that are kept, over the time that they span.
    span = time.perf_counter_ns() - (rows[0].born_ns if rows else table.since_ns)
    return len(rows) * cost / max(span, 1)
