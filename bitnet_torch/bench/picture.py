"""The rows of one run as a picture: how near to the limit, and how far ahead of the baseline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bitnet_torch.bench.row import Reached, Row
from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.io.atomic import atomic_file

INK, MUTED, OURS, THEIRS = "#1f2933", "#7b8794", "#2f80ed", "#d9480f"
_VERDICTS = {
    "faster": (OURS, "bold"),
    "slower": (THEIRS, "bold"),
    "same": (INK, "normal"),
    "unsure": (MUTED, "normal"),
}
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
    # On the axis of the first: bytes that stand beside times are in the file only.
    drawn = [row for row in reversed(rows) if row.value.unit == rows[0].value.unit]
    height = _MARGIN_INCHES + _ROW_INCHES * len(drawn)
    # The object-oriented interface: pyplot would choose a window system for the whole process.
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=(13, height), dpi=130)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_figures(left, drawn)
    _draw_limits(right, drawn)
    for axes in (left, right):
        _dress(axes, drawn)
    left.set_yticks(range(len(drawn)), [_label(row) for row in drawn], fontsize=8)
    _title(figure, rows[0], height)
    figure.subplots_adjust(
        left=0.345, right=0.875, top=1 - 1.05 / height, bottom=0.6 / height, wspace=0.06
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
    axes.set_xlabel(
        "MiB" if rows[0].value.unit == "bytes" else "microseconds a call", color=INK, fontsize=9
    )
    axes.plot([], [], "o", color=OURS, label="this package, median and p20 to p80")
    if any(row.baseline is not None for row in rows):
        axes.plot([], [], "o", color=THEIRS, label="baseline, named on the left")
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1),
        ncols=2,
    )


def _draw_limits(axes: Any, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if row.reached is not None:
            _draw_fraction(axes, place, row.reached)
        if row.ratio is not None:
            color, weight = _VERDICTS[row.ratio.verdict]
            text = f"{row.ratio.ratio:.2f}x, {row.ratio.verdict}"
            where = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
            axes.text(1.02, place, text, color=color, fontweight=weight, **where)
    widest = max((100 * r.reached.fraction for r in rows if r.reached is not None), default=0)
    axes.set_xlim(0, max(104.0, widest * 1.02))
    axes.axvline(100, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("percent of the machine's limit in this run", color=INK, fontsize=9)
    axes.tick_params(axis="y", length=0)


def _draw_fraction(axes: Any, place: int, reached: Reached) -> None:
    percent = 100 * reached.fraction
    axes.barh(place, percent, height=0.58, color=OURS, alpha=0.85, zorder=2)
    inside = percent > 60
    axes.text(
        percent - 1.5 if inside else percent + 1.5,
        place,
        f"{percent:.0f}% {reached.limit}",
        ha="right" if inside else "left",
        va="center",
        fontsize=7.5,
        color="white" if inside else INK,
        zorder=3,
    )


def _dress(axes: Any, rows: Sequence[Row]) -> None:
    groups = list(dict.fromkeys(_group(row) for row in rows))
    for place, row in enumerate(rows):
        if groups.index(_group(row)) % 2:
            axes.axhspan(place - 0.5, place + 0.5, color=MUTED, alpha=0.09, linewidth=0, zorder=0)
    axes.grid(axis="x", color=MUTED, alpha=0.22, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_axisbelow(True)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _group(row: Row) -> tuple[object, ...]:
    s = row.subject
    return (s.suite, s.m, s.n, s.k) if s.suite == "ops" else (s.suite, s.op)


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
