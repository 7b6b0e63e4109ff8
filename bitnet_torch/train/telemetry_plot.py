"""The telemetry of a run as one picture of six panels, drawn from its metrics file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.io.atomic import atomic_file
from bitnet_torch.train.curve import INK, MUTED, TRAIN
from bitnet_torch.train.metrics import Row, read_metrics
from bitnet_torch.train.telemetry import BIN

Points = tuple[list[int], list[float]]


def draw_telemetry(metrics: Path, picture: Path) -> bool:
    """Draw loss, learning rate, zero fraction, flips, scale drift and the weight histogram.

    Returns:
        Whether there was a row of telemetry; without one nothing is drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    rows = read_metrics(metrics)
    measured = [row for row in rows if "telemetry" in row]
    if not measured:
        return False
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=(13, 7), dpi=130)
    panels = figure.subplots(2, 3).reshape(-1)
    _line(panels[0], "loss (nats)", _of_rows(rows, "loss"))
    _line(panels[1], "learning rate", _of_rows(rows, "learning_rate"))
    _layers(panels[2], "zero fraction", measured, "zero_fraction")
    _layers(panels[3], "share of codes flipped per step", measured, "flips_per_step")
    _layers(panels[4], "relative drift of the scale", measured, "scale_drift")
    _histogram(panels[5], measured)
    figure.tight_layout()
    with atomic_file(picture) as aside:
        figure.savefig(aside, format="png")
    return True


def _of_rows(rows: list[Row], key: str) -> Points:
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _line(axes: Any, title: str, points: Points) -> None:
    axes.plot(*points, color=TRAIN, linewidth=1.2)
    _dress(axes, title, "optimizer step")


def _layers(axes: Any, title: str, measured: list[Row], key: str) -> None:
    """Draw a figure of every layer faintly and, where there is one, that of all weights."""
    for name in measured[-1]["telemetry"]["layers"]:
        rows = [
            {"step": row["step"], **row["telemetry"]["layers"][name]}
            for row in measured
            if name in row["telemetry"]["layers"]
        ]
        axes.plot(*_of_rows(rows, key), color=MUTED, alpha=0.35, linewidth=0.7)
    total = _of_rows([{"step": row["step"], **row["telemetry"]} for row in measured], key)
    if total[0]:
        axes.plot(*total, color=INK, linewidth=1.8, marker="o", markersize=2.5)
    _dress(axes, title, "optimizer step")


def _histogram(axes: Any, measured: list[Row]) -> None:
    """Draw the first and the last histogram of |w| / scale, each to an area of 1."""
    chosen = {"first": (measured[0], MUTED), "last": (measured[-1], INK)}
    for which, (row, colour) in chosen.items():
        counts = row["telemetry"]["histogram"]
        total = max(sum(counts), 1) * BIN
        edges = [(i + 0.5) * BIN for i in range(len(counts))]
        label = f"{which} (step {row['step']})"
        axes.plot(edges, [c / total for c in counts], color=colour, label=label)
    axes.axvline(0.5, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    axes.legend(frameon=False, labelcolor=INK)
    _dress(axes, "latent weights", "|w| / scale")


def _dress(axes: Any, title: str, across: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel(across)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
