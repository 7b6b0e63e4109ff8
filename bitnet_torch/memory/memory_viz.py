"""The record in the form of ``torch.cuda.memory._snapshot()``, which PyTorch's viewer loads.

Source: torch/cuda/_memory_viz.py and pytorch.org/memory_viz.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.memory.sites import Site

if TYPE_CHECKING:
    from bitnet_torch.memory.records import Allocation, StorageEvent
    from bitnet_torch.memory.report import Report

_LARGE = 1 << 20


def write(report: Report, path: Path) -> None:
    """Write the pickle."""
    path.write_bytes(pickle.dumps(snapshot_of(report)))


def snapshot_of(report: Report) -> dict[str, Any]:
    """Return the record as PyTorch would have made it on a GPU."""
    cpu = [a for a in report.snapshot.allocations if a.device == "cpu" and a.nbytes]
    trace: list[dict[str, Any]] = []
    for event in report.events:
        if event.device == "cpu" and event.address:
            trace += _trace_entries(event)
    return {
        "segments": [_segment(allocation) for allocation in cpu],
        "device_traces": [trace],
        "allocator_settings": {},
        "external_annotations": [],
    }


def _trace_entries(event: StorageEvent) -> list[dict[str, Any]]:
    """A free is two entries there: what was asked for, and what has happened."""
    actions = ("alloc",) if event.change > 0 else ("free_requested", "free_completed")
    entry = {
        "addr": event.address,
        "size": abs(event.change),
        "stream": 0,
        "time_us": event.time_ns // 1000,
        "frames": _frames(event.stack, event.op, event.module) if event.change > 0 else [],
        "compile_context": "N/A",
        "user_metadata": event.module,
        "pool_id": (0, 0),
    }
    return [{"action": action, **entry} for action in actions]


def _segment(allocation: Allocation) -> dict[str, Any]:
    """Return a storage as a segment with one block: a CPU has no segments."""
    size = allocation.nbytes
    frames = _frames(allocation.stack, allocation.op, allocation.module)
    block = {
        "address": allocation.address,
        "size": size,
        "requested_size": size,
        "state": "active_allocated",
        "frames": frames,
        "user_metadata": allocation.module,
    }
    return {
        "device": 0,
        "address": allocation.address,
        "total_size": size,
        "allocated_size": size,
        "active_size": size,
        "requested_size": size,
        "stream": 0,
        "segment_type": "large" if size >= _LARGE else "small",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": frames,
        "blocks": [block],
    }


def _frames(stack: Sequence[Site], op: str, module: str) -> list[dict[str, Any]]:
    known = [{"filename": s.file, "line": s.line, "name": s.function} for s in stack]
    return known or [{"filename": module or "(outside)", "line": 0, "name": op or "(unknown)"}]
