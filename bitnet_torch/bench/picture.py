"""The rows of one run as a picture: how near to the limit, and how far ahead of the baseline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bitnet_torch.bench.row import Row
from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.io.atomic import atomic_file

INK, MUTED, OURS, THEIRS = "#1f2933", "#7b8794", "#2f80ed", "#d9480f"
_ROW_INCHES, _MARGIN_INCHES = 0.27, 1.9


def require_matplotlib() -> None:
    """Raise MissingDependencyError now, and not after minutes of measuring."""
    require("matplotlib.figure", extra="plot")


def draw_rows(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Draw the rows of one run as a PNG.

    Raises:
        ConfigurationError: There is no row that is a figure in time or bytes.
        MissingDependencyError: matplotlib is not installed.
    """
    if not rows:
        raise ConfigurationError("there are no rows to draw")
    drawn = list(reversed(rows))
    height = _MARGIN_INCHES + _ROW_INCHES * len(drawn)
    # The object-oriented interface: pyplot would choose a window system for the whole process.
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=(11.5, height), dpi=140)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_figures(left, drawn)
    _draw_limits(right, drawn)
    for axes in (left, right):
        _dress(axes)
    left.set_yticks(range(len(drawn)), [_label(row) for row in drawn], fontsize=8)
    _title(figure, rows[0], height)
    figure.subplots_adjust(
        left=0.27, right=0.975, top=1 - 1.05 / height, bottom=0.6 / height, wspace=0.05
    )
    with atomic_file(path) as aside:
        figure.savefig(aside, format="png")


def _draw_figures(axes: Any, rows: Sequence[Row]) -> None:
    scale = 2**20 if rows[0].value.unit == "bytes" else 1.0
    for place, row in enumerate(rows):
        if row.baseline is not None:
            ends = [row.value.median / scale, row.baseline.median / scale]
            axes.plot(ends, [place, place], color=MUTED, alpha=0.45, linewidth=1.2, zorder=1)
            axes.plot(ends[1], place, "o", color=THEIRS, markersize=5, zorder=2)
        span = [row.value.p20 / scale, row.value.p80 / scale]
        axes.plot(span, [place, place], color=OURS, linewidth=4, alpha=0.35, zorder=2)
        axes.plot(row.value.median / scale, place, "o", color=OURS, markersize=6, zorder=3)
    axes.set_xscale("log")
    axes.set_xlabel("MiB" if rows[0].value.unit == "bytes" else "microseconds a call", color=INK)
    axes.plot([], [], "o", color=OURS, label="this package, median and p20 to p80")
    if any(row.baseline is not None for row in rows):
        axes.plot([], [], "o", color=THEIRS, label="baseline, named on the left")
    axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
    )


def _draw_limits(axes: Any, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if row.reached is None:
            continue
        fraction = row.reached.fraction
        axes.barh(place, fraction * 100, height=0.55, color=OURS, alpha=0.8, zorder=2)
        ratio = "" if row.ratio is None else f"   {row.ratio.ratio:.2f}x baseline"
        text = f"{fraction:.0%} of {row.reached.limit}{ratio}"
        axes.text(fraction * 100 + 1.5, place, text, va="center", fontsize=7.5, color=INK, zorder=3)
    axes.axvline(100, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    widest = max((100 * r.reached.fraction for r in rows if r.reached is not None), default=0)
    axes.set_xlim(0, max(150.0, widest + 55))
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("percent of the machine's limit, measured in the same run", color=INK)
    axes.tick_params(axis="y", length=0)


def _dress(axes: Any) -> None:
    axes.grid(axis="x", color=MUTED, alpha=0.22, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_axisbelow(True)
    axes.margins(y=0.01)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _title(figure: Any, row: Row, height: float) -> None:
    e = row.environment
    threads = f"{e.threads} thread{'s' * (e.threads != 1)}"
    text = f"bitnet bench {row.subject.suite}: {e.machine}, {threads}, {e.backend} {e.isa}"
    figure.text(0.012, 1 - 0.24 / height, text, fontsize=12, color=INK, va="center")
    load = "" if e.load_average is None else f", load average {e.load_average:.1f}"
    detail = f"torch {e.versions['torch']}, commit {(e.commit or 'none')[:10]}, {e.utc}{load}"
    figure.text(0.012, 1 - 0.5 / height, detail, fontsize=8.5, color=MUTED, va="center")


def _label(row: Row) -> str:
    s = row.subject
    if s.suite == "memory":
        return f"{s.op} ({s.candidate})"
    size = f"{s.n}x{s.k}" if s.n else f"width {s.k}, {s.layers} layers" if s.layers else f"K={s.k}"
    tokens = f"M={s.m} " if s.m else ""
    beside = f"  vs {s.baseline}" if s.baseline else ""
    return f"{s.op}  {tokens}{size}  {s.buffers}{beside}"
