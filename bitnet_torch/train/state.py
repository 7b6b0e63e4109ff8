"""The state of a run in progress, and how it begins: anew, or from its newest checkpoint."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory import RecoveryStep
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import convert
from bitnet_torch.train.checkpoint import (
    Progress,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
from bitnet_torch.train.config import TrainConfig
from bitnet_torch.train.data import Corpus
from bitnet_torch.train.metrics import drop_rows_after
from bitnet_torch.train.optimizer import make_optimizer
from bitnet_torch.train.provenance import git_commit

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """A run in progress.

    Attributes:
        config: The run.
        corpus: Its text.
        model: In full precision before ``schedule.qat_start``, ternary after.
        optimizer: AdamW over the same parameters all along.
        step: Optimizer steps done.
        seconds_before: Wall time of earlier processes that worked on the run.
        held_out: Newest held-out bits/byte, for the progress bar.
        commit: Of the code, as it was when this process began.
        piece: Windows that are in memory at once, since it has run out; None while it has not.
        recoveries: What this process did where memory ran out in the run, in order.
    """

    config: TrainConfig
    corpus: Corpus
    model: CausalLM
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds_before: float = 0.0
    held_out: float | None = None
    commit: str | None = field(default_factory=lambda: git_commit(Path(__file__).parent))
    piece: int | None = None
    recoveries: list[RecoveryStep] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)

    @property
    def out(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run.out)

    @property
    def metrics_path(self) -> Path:
        """The metrics file."""
        return self.out / "metrics.jsonl"

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all processes that worked on it."""
        return self.seconds_before + time.perf_counter() - self._started

    @property
    def newest_checkpoint(self) -> Path | None:
        """The checkpoint a continuation would start from."""
        checkpoints = list_checkpoints(self.out / "checkpoints")
        return checkpoints[-1] if checkpoints else None

    def save(self) -> Path:
        """Write a checkpoint and return its path."""
        progress = Progress(self.step, self.seconds, self.config.to_dict(), self.corpus.sha256)
        folder, keep = self.out / "checkpoints", self.config.run.keep_checkpoints
        return save_checkpoint(folder, progress, self.model, self.optimizer, keep)


def begin(config: TrainConfig, corpus: Corpus, *, resume: bool) -> TrainState:
    """Return the run at its start, or where its newest checkpoint left it.

    Raises:
        ConfigurationError: The folder holds a run and ``resume`` is False, or the checkpoint
            belongs to another configuration or text.
        CheckpointError: The newest checkpoint is damaged.
    """
    model = CausalLM(config.model, linear=nn.Linear, dtype=torch.float32)
    model.init_weights(config.run.seed)
    state = TrainState(config, corpus, model, make_optimizer(model, config.optimizer))
    (state.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    remove_unfinished(state.out / "checkpoints")
    newest = state.newest_checkpoint
    if not resume and (newest or state.metrics_path.exists()):
        raise ConfigurationError(
            f"run.out={config.run.out!r} holds a run already; resume it or choose another folder",
            out=config.run.out,
        )
    if newest is not None:
        saved = load_checkpoint(newest, model, state.optimizer)
        check_same_run(saved, config.to_dict(), corpus.sha256, newest)
        state.step, state.seconds_before = saved.step, saved.seconds
        # The step that switches has been done; the trainer switches only when it comes to it.
        if state.step > config.schedule.qat_start:
            convert(model)
        logger.info("continuing from %s", newest)
        if saved.torch != torch.__version__:
            logger.warning(
                "%s was written with torch %s, this is %s: the run continues, but its bits may "
                "not be those of an uninterrupted one",
                newest,
                saved.torch,
                torch.__version__,
            )
    drop_rows_after(state.metrics_path, state.step)
    return state
