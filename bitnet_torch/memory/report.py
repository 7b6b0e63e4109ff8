"""Everything that was recorded, in one place, for pages, traces and tables to be made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.memory import chrome_trace, html_page, memory_viz, text_table
from bitnet_torch.memory.account import Account
from bitnet_torch.memory.backend import Backend
from bitnet_torch.memory.records import StorageEvent, Tally
from bitnet_torch.memory.snapshot import Snapshot
from bitnet_torch.memory.stats import MemoryStats

if TYPE_CHECKING:
    from bitnet_torch.memory.leaks import LeakReport
    from bitnet_torch.memory.pool import HybridMemoryPool


@dataclass(frozen=True)
class Report:
    """A record of the CPU's memory.

    Attributes:
        source: Who counted.
        exact: Whether every allocation was seen.
        total: Of the CPU.
        modules: Of each module.
        ops: Of each operator.
        events: The last events, oldest first.
        dropped_events: Older events that were not kept.
        snapshot: What is alive.
        tags: Bytes and number of live leases by tag.
        stats: The pool's view of its device.
        account: What the bytes were for at the fullest moment at the end of a forward pass; None
            if no module was watched.
    """

    source: str
    exact: bool
    total: Tally
    modules: dict[str, Tally]
    ops: dict[str, Tally]
    events: Sequence[StorageEvent]
    dropped_events: int
    snapshot: Snapshot
    tags: dict[str, tuple[int, int]]
    stats: MemoryStats
    account: Account | None

    @classmethod
    def of(
        cls,
        backend: Backend,
        pool: HybridMemoryPool,
        snapshot: Snapshot,
        account: Account | None = None,
    ) -> Report:
        """Return what a backend and a pool have recorded."""
        return cls(
            source=backend.source,
            exact=backend.exact,
            total=backend.tally("cpu"),
            modules=backend.by_module(),
            ops=backend.by_op(),
            events=backend.events(),
            dropped_events=backend.dropped_events,
            snapshot=snapshot,
            tags=pool.lease_tags(),
            stats=pool.get_stats(),
            account=account,
        )

    def timeline(self) -> list[tuple[int, int]]:
        """Return (time in ns, live bytes on the CPU) after each event that was kept."""
        changes = [(event.time_ns, event.change) for event in self.events if event.device == "cpu"]
        live = self.total.current - sum(change for _, change in changes)
        points = []
        for time_ns, change in changes:
            live += change
            points.append((time_ns, live))
        return points

    def table(self, order_by: str = "peak", rows: int = 10) -> str:
        """Return text for the terminal; see :func:`text_table.render`."""
        return text_table.render(self, order_by, rows)

    def to_dict(self, rows: int = 20) -> dict[str, Any]:
        """Return the figures by name, for JSON: totals, and the largest ``rows`` of each kind."""
        return {
            "source": self.source,
            "exact": self.exact,
            "total": text_table.tally_dict(self.total),
            "modules": text_table.largest(self.modules, rows),
            "ops": text_table.largest(self.ops, rows),
            "leases": {tag: {"bytes": b, "count": n} for tag, (b, n) in self.tags.items()},
            "sites": [
                {"key": g.key, "bytes": g.nbytes, "count": g.count}
                for g in self.snapshot.group("site")[:rows]
            ],
            "account": None if self.account is None else self.account.to_dict(),
            "stats": self.stats.to_dict(),
        }

    def write_html(self, path: Path, leaks: LeakReport | None = None) -> None:
        """Write a page that needs nothing else."""
        html_page.write(self, path, leaks)

    def write_chrome_trace(self, path: Path) -> None:
        """Write the timeline for ``chrome://tracing`` and Perfetto."""
        chrome_trace.write(self, path)

    def write_memory_viz(self, path: Path) -> None:
        """Write a pickle that PyTorch's memory viewer loads."""
        memory_viz.write(self, path)
