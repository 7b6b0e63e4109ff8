"""The loss curve of a run as a picture, drawn from its metrics file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.io.atomic import atomic_file
from bitnet_torch.train.metrics import Row, read_metrics
from bitnet_torch.train.result import RunResult

INK, MUTED, TRAIN, HELD_OUT = "#1f2933", "#7b8794", "#2f80ed", "#d9480f"
# Rows averaged on either side of a point; the single batches are drawn faintly behind.
SMOOTHING = 10


def draw_curve(metrics: Path, result: RunResult, picture: Path) -> None:
    """Draw training and held-out bits per byte or token over the steps, and the switch.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    rows = read_metrics(metrics)
    # The object-oriented interface: pyplot would choose a window system for the whole process.
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=(9, 5), dpi=150)
    axes = figure.add_subplot()
    _draw_losses(axes, rows, result.unit)
    _mark_switch(axes, result)
    _mark_result(axes, result)
    _dress(axes, result)
    figure.tight_layout()
    with atomic_file(picture) as aside:
        figure.savefig(aside, format="png")


def _draw_losses(axes: Any, rows: list[Row], unit: str) -> None:
    key, held_key = f"bits_per_{unit}", f"held_out_bits_per_{unit}"
    train = [(r["step"], r[key]) for r in rows if key in r]
    held = [(r["step"], r[held_key]) for r in rows if held_key in r]
    steps, bits = [s for s, _ in train], [b for _, b in train]
    axes.plot(steps, bits, color=TRAIN, alpha=0.22, linewidth=0.8)
    axes.plot(steps, _smoothed(bits), color=TRAIN, linewidth=1.8, label="training batches")
    axes.plot(
        [s for s, _ in held],
        [b for _, b in held],
        color=HELD_OUT,
        linewidth=1.6,
        marker="o",
        markersize=3.5,
        label="held-out sample",
    )
    # The first steps fall from 8 bits; the part worth reading is below.
    settled = bits[len(bits) // 10 :] + [b for _, b in held]
    axes.set_ylim(min(settled) - 0.15, max(settled) + 0.35)


def _smoothed(values: list[float]) -> list[float]:
    means = []
    for i in range(len(values)):
        near = values[max(i - SMOOTHING, 0) : i + SMOOTHING + 1]
        means.append(sum(near) / len(near))
    return means


def _mark_switch(axes: Any, result: RunResult) -> None:
    switch = result.config["schedule"]["qat_start"]
    if result.form == "float" or switch == 0:
        return
    axes.axvline(switch, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.axvspan(switch, result.steps, color=MUTED, alpha=0.07, linewidth=0)
    label = {"y": 0.97, "transform": axes.get_xaxis_transform(), "color": MUTED, "va": "top"}
    gap = result.steps * 0.008
    axes.text(switch - gap, s="full precision", ha="right", **label)
    axes.text(switch + gap, s="ternary weights", ha="left", **label)


def _mark_result(axes: Any, result: RunResult) -> None:
    text = f"whole held-out text: {result.bits:.3f} bits/{result.unit} ({result.form})"
    axes.plot(
        result.steps,
        result.bits,
        color=INK,
        marker="D",
        markersize=6,
        linestyle="none",
        label=text,
        zorder=5,
        clip_on=False,
    )


def _dress(axes: Any, result: RunResult) -> None:
    model, data = result.config["model"], result.config["data"]
    axes.set_title(
        f"{result.unit.capitalize()}-level language model, {model['num_hidden_layers']} layers of "
        f"width {model['hidden_size']}, {result.tokens / 1e6:.1f} M {result.unit}s seen",
        loc="left",
        color=INK,
        fontsize=12,
        pad=12,
    )
    axes.set_xlabel(f"optimizer step ({data['batch']} windows of {data['context']} {result.unit}s)")
    axes.set_ylabel(f"bits per {result.unit}")
    axes.set_xlim(0, result.steps)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="lower left", labelcolor=INK)
