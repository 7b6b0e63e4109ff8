"""The timeline in Chrome's trace format: a counter of live bytes, and a span for each storage.

Source: the Trace Event Format, which ``chrome://tracing`` and ui.perfetto.dev load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_torch.memory.report import Report


def write(report: Report, path: Path) -> None:
    """Write the events that were kept."""
    path.write_text(json.dumps({"traceEvents": trace_events(report)}))


def trace_events(report: Report) -> list[dict[str, Any]]:
    """Return the entries of the trace; its times are microseconds since the first event."""
    points = report.timeline()
    start = points[0][0] if points else 0
    entries: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "CPU memory"}}
    ]
    for time_ns, live in points:
        at = (time_ns - start) / 1e3
        entries.append(
            {"ph": "C", "name": "live bytes", "pid": 1, "ts": at, "args": {"bytes": live}}
        )
    open_spans: dict[int, tuple[int, str]] = {}
    for number, event in enumerate(report.events):
        name = event.op or "(unknown)"
        span = {"cat": "memory", "pid": 1, "tid": event.thread, "ts": (event.time_ns - start) / 1e3}
        if event.change > 0:
            open_spans[event.address] = (number, name)
            facts = {"bytes": event.change, "module": event.module}
            entries.append({**span, "ph": "b", "name": name, "id": number, "args": facts})
        elif event.address in open_spans:
            begun, name = open_spans.pop(event.address)
            entries.append({**span, "ph": "e", "name": name, "id": begun})
    return entries
