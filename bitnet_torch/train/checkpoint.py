"""Checkpoints of a run: one safetensors file each, whole or absent.

A file ``step-00000500.safetensors`` holds the parameters (``model.<name>``), the optimizer's state
(``optimizer.<name>.<key>``), what else a run must remember (``extra.<name>``: the state of
PyTorch's random numbers, the codes that telemetry compares with) and, as JSON in the header, the
step, the configuration, the digest of the text, the last losses, the seconds trained and a digest
of all of it. Nothing is pickled. That is the whole state: batches and learning rates are functions
of the step.

A file is written aside, flushed and renamed, so a kill or a full disk costs at most the
steps since the one before. The digest catches what a rename cannot: a disk that lost bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.atomic import atomic_file
from bitnet_torch.train.config import TrainConfig
from bitnet_torch.train.optimizer import Optimizer, expected_moments, moments, restore_moments

_NAME = re.compile(r"step-(\d{8})\.safetensors")
_HEADER = "bitnet_torch.train"
# These say where things are and how often something is kept, not what is computed or logged.
_MAY_CHANGE = ("data.root", "run.out", "run.checkpoint_every", "run.keep_checkpoints")
_EXTRA = "extra."


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
        seconds: Wall time they took, over all processes that worked on the run.
        config: The run's configuration as plain JSON values.
        text_sha256: Digest of the text it trains on.
        torch: Version of PyTorch; another one may round differently.
        recent_losses: Those that the guard against spikes compares with.
    """

    step: int
    seconds: float
    config: dict[str, Any]
    text_sha256: str
    torch: str = torch.__version__
    recent_losses: list[float] = field(default_factory=list)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps stands."""
    return folder / f"step-{step:08d}.safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*.safetensors") if _NAME.fullmatch(p.name))


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left; each is as large as a checkpoint."""
    for partial in folder.glob(".step-*.partial"):
        partial.unlink()


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    keep: int,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``.

    Args:
        folder: Where.
        progress: Where the run stands.
        model: Its parameters.
        optimizer: Its optimizer.
        keep: At least 1.
        extra: What else is to be remembered, by name.

    Raises:
        CheckpointError: The file cannot be written; earlier checkpoints are untouched.
    """
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"optimizer.{k}": v for k, v in moments(model, optimizer).items()}
    tensors |= {f"{_EXTRA}{k}": v for k, v in (extra or {}).items()}
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    facts = dataclasses.asdict(progress)
    header = json.dumps({"progress": facts, "sha256": _digest(facts, tensors)})
    path = checkpoint_path(folder, progress.step)
    content = safetensors.torch.save(tensors, {_HEADER: header})
    try:
        with atomic_file(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} could not be written: {error.strerror}; {_good_one(folder)}",
            file=str(path),
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    extra: dict[str, Tensor] | None = None,
) -> Progress:
    """Put a checkpoint into ``model`` and ``optimizer`` and return where it stands.

    Args:
        path: The file.
        model: Of the form that it had when it was saved.
        optimizer: Over the parameters it had then.
        extra: Takes what else was remembered.

    Raises:
        CheckpointError: The file is damaged, or holds other tensors than the model. The message
            names the newest older checkpoint, from which the run can be continued.
    """
    with _damage_named(path):
        progress, tensors = _read(path)
        _check_names(model, optimizer, tensors, progress.step)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    if progress.step:
        saved = _with_prefix(tensors, "optimizer.")
        restore_moments(model, optimizer, saved, progress.step)
    if extra is not None:
        extra |= _with_prefix(tensors, _EXTRA)
    return progress


def read_progress(path: Path) -> Progress:
    """Return where the run of a checkpoint stands, without its tensors.

    Raises:
        CheckpointError: The header is damaged.
    """
    with _damage_named(path), safetensors.safe_open(path, framework="pt") as file:
        return Progress(**json.loads(file.metadata()[_HEADER])["progress"])


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raise what reading ``path`` raises as an error that names it and the one before it."""
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        older = [p for p in list_checkpoints(path.parent) if p < path]
        advice = f"delete it to continue from {older[-1]}" if older else "there is no older one"
        raise CheckpointError(
            f"checkpoint {path} is damaged ({error}); {advice}", file=str(path)
        ) from error


def check_same_run(saved: Progress, config: dict[str, Any], text_sha256: str, path: Path) -> None:
    """Refuse to continue a run under another configuration or on other text.

    Where things lie and how often a checkpoint is written may change; everything that the
    weights or the metrics depend on, the number of threads included, may not. A switch to
    ternary that still lies ahead may be moved, for the steps done so far are the same: a
    full-precision twin can share the first part of a run by continuing a copy of its folder.

    Raises:
        ConfigurationError: Naming every key that differs, with both values.
    """
    before, now = _flat(_with_defaults(saved.config)), _flat(config)
    switches = before["schedule.qat_start"], now["schedule.qat_start"]
    free = (*_MAY_CHANGE, "schedule.qat_start") if min(switches) >= saved.step else _MAY_CHANGE
    differing = [
        f"{key} ({before.get(key)!r} in the checkpoint, {now.get(key)!r} now)"
        for key in sorted(before.keys() | now.keys())
        if key not in free and before.get(key) != now.get(key)
    ]
    if saved.text_sha256 != text_sha256:
        differing.append("the text itself (its SHA-256 differs)")
    if differing:
        raise ConfigurationError(
            f"{path} belongs to another run; it differs in {'; '.join(differing)}",
            file=str(path),
            differing=differing,
        )


def _read(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[_HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _digest(header["progress"], tensors) != header["sha256"]:
        raise ValueError("it does not have the digest it was written with")
    return Progress(**header["progress"]), tensors


def _check_names(
    model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], step: int
) -> None:
    wanted = {f"model.{name}": p.shape for name, p in model.named_parameters()}
    if step:
        state = expected_moments(model, optimizer)
        wanted |= {f"optimizer.{name}": shape for name, shape in state.items()}
    for key, shape in wanted.items():
        found = tuple(tensors[key].shape) if key in tensors else None
        if found != tuple(shape):
            raise ValueError(f"{key} has shape {found}, expected {tuple(shape)}")


def _digest(facts: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().data)
    return total.hexdigest()


def _good_one(folder: Path) -> str:
    existing = list_checkpoints(folder)
    return f"the last good one is {existing[-1]}" if existing else "there is no earlier one"


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the settings that an earlier version did not have."""
    try:
        return TrainConfig.from_dict(config).to_dict()
    except ConfigurationError:
        # Of a later version, say: then the comparison names what differs.
        return config


def _flat(sections: dict[str, Any]) -> dict[str, Any]:
    return {f"{s}.{k}": v for s, values in sections.items() for k, v in values.items()}
