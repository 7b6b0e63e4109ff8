"""The record as one page of HTML that needs no other file and no network.

Names come from models and programs that we know nothing of: every one is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_torch.memory.text_table import shown_bytes

if TYPE_CHECKING:
    from bitnet_torch.memory.account import Account
    from bitnet_torch.memory.leaks import LeakReport
    from bitnet_torch.memory.records import Tally
    from bitnet_torch.memory.report import Report

_WIDTH, _HEIGHT = 960, 220
_POINTS = 1000
_ROWS = 25
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
td, th { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid #d8dee4; }
td:last-child, th:last-child { text-align: left; width: 60%; overflow-wrap: anywhere; }
.bar { height: .35rem; background: #2f6f9f; border-radius: 2px; }
svg { width: 100%; height: auto; background: #f6f8fa; border-radius: 4px; }
path { fill: #2f6f9f44; stroke: #2f6f9f; stroke-width: 1.5; } .leak { color: #a40e26; }
@media (prefers-color-scheme: dark) { body { color: #d7dde3; background: #14181c; }
  td, th { border-color: #30363d; } svg { background: #1c2127; } .leak { color: #ff7b89; } }
"""


def write(report: Report, path: Path, leaks: LeakReport | None) -> None:
    """Write the page."""
    path.write_text(render(report, leaks), encoding="utf-8")


def render(report: Report, leaks: LeakReport | None = None) -> str:
    """Return the page."""
    total = report.total
    counted = "every allocation" if report.exact else "what operators return"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>Memory</title><style>{_STYLE}</style></head><body><h1>CPU memory</h1>",
        f"<p>Live <b>{shown_bytes(total.current)}</b>, peak <b>{shown_bytes(total.peak)}</b>, "
        f"{shown_bytes(total.allocated)} in {total.allocs:,} allocations. "
        f"Counted: {counted} ({escape(report.source)}).</p>",
        *_timeline(report),
        *_leaks(leaks),
        *_account(report.account),
        *_tallies("Modules", report.modules),
        *_tallies("Operators", report.ops),
        *_sites(report),
        *_leases(report),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _timeline(report: Report) -> Iterable[str]:
    points = _thinned(report.timeline())
    yield "<h2>Live bytes over time</h2>"
    if not points:
        yield "<p>No events were kept.</p>"
        return
    start, end = points[0][0], points[-1][0]
    most = max(max(live for _, live in points), 1)
    path = [f"M0 {_HEIGHT}"]
    for time_ns, live in points:
        x = (time_ns - start) / max(end - start, 1) * _WIDTH
        path.append(f"L{x:.1f} {_HEIGHT - live / most * (_HEIGHT - 10):.1f}")
    path.append(f"L{_WIDTH} {_HEIGHT}Z")
    label = f"live bytes over {(end - start) / 1e6:.3g} ms, at most {shown_bytes(most)}"
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    yield f'<path d="{" ".join(path)}"/></svg><p>{label}'
    if report.dropped_events:
        yield f"; {report.dropped_events:,} older events were not kept"
    yield ".</p>"


def _thinned(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Keep the largest of each run of points, so that no peak is lost."""
    step = -(-len(points) // _POINTS) or 1
    runs = (points[i : i + step] for i in range(0, len(points), step))
    return [max(run, key=lambda point: point[1]) for run in runs]


def _account(account: Account | None) -> Iterable[str]:
    if account is None:
        return
    yield f"<h2>What the memory is for</h2><p>{shown_bytes(account.total)} live "
    yield f"{escape(account.moment)}, the fullest of these moments.</p>"
    parts = [*account.parts.items(), ("unexplained", account.unexplained)]
    shown = [(shown_bytes(n), f"{n / max(account.total, 1):.1%}", name) for name, n in parts]
    yield from _table(("bytes", "share", "for"), shown)


def _leaks(report: LeakReport | None) -> Iterable[str]:
    if report is None:
        return
    yield "<h2>Leaks</h2>"
    if not report.leaks:
        yield f"<p>None in {report.iterations} repetitions.</p>"
        return
    rows = [(f"{leak.nbytes:+,}", f"{leak.count:,}", leak.key) for leak in report.leaks]
    yield from _table(("bytes", "storages", "left behind by every repetition"), rows, "leak")


def _tallies(title: str, tallies: dict[str, Tally]) -> Iterable[str]:
    order = sorted(tallies, key=lambda name: (-tallies[name].peak, name))[:_ROWS]
    most = max((tallies[name].peak for name in order), default=0) or 1
    yield f"<h2>{title}, by peak</h2><table>"
    yield "<tr><th>peak<th>live<th>allocated<th>allocs<th>name</tr>"
    for name in order:
        tally = tallies[name]
        cells = [shown_bytes(n) for n in (tally.peak, tally.current, tally.allocated)]
        bar = f'<div class="bar" style="width:{tally.peak / most:.1%}"></div>'
        yield (
            f"<tr><td>{'<td>'.join(cells)}<td>{tally.allocs:,}"
            f"<td>{escape(name) or '(outside)'}{bar}</tr>"
        )
    yield "</table>"


def _sites(report: Report) -> Iterable[str]:
    yield "<h2>Where the live bytes come from</h2>"
    groups = report.snapshot.group("site")[:_ROWS]
    rows = [(shown_bytes(g.nbytes), f"{g.count:,}", g.key) for g in groups]
    yield from _table(("bytes", "storages", "place"), rows)


def _leases(report: Report) -> Iterable[str]:
    order = sorted(report.tags.items(), key=lambda item: -item[1][0])
    yield "<h2>Leases of the pool</h2>"
    rows = [
        (shown_bytes(nbytes), f"{count:,}", tag or "(no tag)") for tag, (nbytes, count) in order
    ]
    yield from _table(("bytes", "leases", "tag"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> Iterable[str]:
    yield f"<table><tr><th>{'<th>'.join(head)}</tr>"
    for row in rows:
        yield f'<tr class="{kind}"><td>{"<td>".join(escape(cell) for cell in row)}</tr>'
    yield "</table>"
