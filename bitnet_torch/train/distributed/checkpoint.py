"""Checkpoints that every process writes its part of, and that any number of processes read.

A folder ``step-00000500`` is a checkpoint of ``torch.distributed.checkpoint``: the latent
weights and the optimizer's state by parameter name, each process's shards in a file of its own,
and ``progress.json`` with the step and what the caller adds. It fits a model that is sharded
by FSDP2 over another number of processes, replicated by DDP, or in one process.

A folder takes its name when all of it is written, so a kill or a full disk leaves the checkpoints
before it. PyTorch pickles the index of the folder: open only what you trust.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from bitnet_torch.errors import CheckpointError
from bitnet_torch.train.distributed.processes import on_first

_NAME = re.compile(r"step-(\d{8})")
_FACTS = "progress.json"


def list_sharded(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())


def save_sharded(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``. Collective.

    Args:
        folder: Where checkpoints stand, the same for all processes; it is made if need be.
        step: Optimizer steps done, at least 1: before, an optimizer has no state.
        model: Plain, replicated or sharded.
        optimizer: Over its parameters.
        facts: JSON values that :func:`load_sharded` gives back.
        keep: Newest checkpoints that stay, at least 1.

    Raises:
        CheckpointError: ``step`` is 0, the checkpoint exists, or it cannot be written; on all
            processes. Earlier checkpoints are untouched.
    """
    path = folder / f"step-{step:08d}"
    aside = folder / f".{path.name}.partial"
    if step < 1:
        raise CheckpointError(f"a checkpoint after {step} steps: an optimizer has no state yet")
    on_first(lambda: _make_room(path, aside))
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    try:
        with _one_process_is_meant():
            save(state, checkpoint_id=aside, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise CheckpointError(
            f"checkpoint {path} could not be written: {_causes(error)}; {_newest(folder)}",
            file=str(path),
        ) from error
    on_first(lambda: _take_place(aside, path, {**facts, "step": step}, keep))
    return path


def load_sharded(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into ``model`` and ``optimizer`` and return its facts. Collective.

    Raises:
        CheckpointError: It is damaged, or holds other parameters than the model.
    """
    facts = read_facts(path)
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    _read(path, state, alone=not dist.is_initialized())
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    return facts


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Put the weights alone into ``model``, which is whole, and return the facts. Not collective.

    What makes a folder for Hugging Face of a checkpoint, whatever number of processes wrote it::

        model = CausalLM(ModelConfig(**config), linear=BitLinear)
        load_weights(path, model)
        pack(model)
        save_pretrained(model, folder)

    Raises:
        CheckpointError: It is damaged, or holds other parameters than the model.
    """
    facts = read_facts(path)
    _read(path, {"model": model.state_dict()}, alone=True)
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was saved beside the tensors: ``step``, and what the caller of save gave.

    Raises:
        CheckpointError: ``path`` is not a whole checkpoint.
    """
    try:
        facts: dict[str, Any] = json.loads((path / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a sharded checkpoint: {_FACTS}: {error}", file=str(path)
        ) from error
    return facts


def _read(path: Path, state: dict[str, Any], alone: bool) -> None:
    try:
        with _one_process_is_meant():
            load(state, checkpoint_id=path, no_dist=alone)
    except (CheckpointException, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read into this model: {_causes(error)}", file=str(path)
        ) from error


@contextlib.contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Drop the warning that PyTorch gives even to those who have said so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninit")
        yield


def _make_room(path: Path, aside: Path) -> None:
    if path.exists():
        raise CheckpointError(f"checkpoint {path} exists already", file=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for unfinished in path.parent.glob(".step-*.partial"):
        shutil.rmtree(unfinished)
    aside.mkdir()


def _take_place(aside: Path, path: Path, facts: dict[str, Any], keep: int) -> None:
    (aside / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
    aside.rename(path)
    for old in list_sharded(path.parent)[:-keep]:
        shutil.rmtree(old)


def _causes(error: BaseException) -> str:
    if not isinstance(error, CheckpointException):
        return str(error)
    failures = error.failures.items()
    return "; ".join(f"process {rank}: {failure[0]}" for rank, failure in failures)


def _newest(folder: Path) -> str:
    whole = list_sharded(folder)
    return f"the last good one is {whole[-1]}" if whole else "there is no earlier one"
