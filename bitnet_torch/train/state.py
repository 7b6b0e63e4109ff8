"""The state of a run in progress, and how it begins: anew, or from its newest checkpoint."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory import RecoveryStep
from bitnet_torch.models import CausalLM
from bitnet_torch.train.checkpoint import (
    Progress,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    remove_unfinished,
    save_checkpoint,
)
from bitnet_torch.train.config import TrainConfig
from bitnet_torch.train.data import Corpus
from bitnet_torch.train.guard import Guard
from bitnet_torch.train.metrics import drop_rows_after
from bitnet_torch.train.optimizer import Optimizer, add_new_parameters, make_optimizer
from bitnet_torch.train.provenance import git_commit
from bitnet_torch.train.switch import make_ternary, warm_up
from bitnet_torch.train.telemetry import Telemetry

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """A run in progress.

    Attributes:
        config: The run.
        corpus: Its text.
        model: In full precision before ``schedule.qat_start``, ternary after.
        optimizer: Over the same parameters all along, and those that the switch brings.
        guard: Watches the losses.
        telemetry: Measures the ternary layers.
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
    optimizer: Optimizer
    guard: Guard
    telemetry: Telemetry = field(default_factory=Telemetry)
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

    def switch(self) -> None:
        """Make the model ternary, keeping what the optimizer has learnt."""
        make_ternary(self.model, self.config.ternary)
        add_new_parameters(self.optimizer, self.model, self.config.optimizer)
        self.guard.forget()

    def prepare_step(self) -> None:
        """Bring the model into the form that the next step has: the switch, then the warm-up."""
        since = self.step - self.config.schedule.qat_start
        if since == 0:
            self.switch()
        warm_up(self.model, self.config.ternary, since)

    def save(self) -> Path:
        """Write a checkpoint and return its path."""
        progress = Progress(
            self.step,
            self.seconds,
            self.config.to_dict(),
            self.corpus.sha256,
            recent_losses=list(self.guard.recent),
        )
        extra = {f"telemetry.{name}": t for name, t in self.telemetry.state().items()}
        extra["rng.cpu"] = torch.get_rng_state()
        folder, keep = self.out / "checkpoints", self.config.run.keep_checkpoints
        return save_checkpoint(folder, progress, self.model, self.optimizer, keep, extra)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigurationError: It belongs to another configuration or text.
            CheckpointError: It is damaged.
        """
        saved = read_progress(path)
        check_same_run(saved, self.config.to_dict(), self.corpus.sha256, path)
        # The step that switches has been done; the trainer switches only when it comes to it.
        if saved.step > self.config.schedule.qat_start:
            self.switch()
        extra: dict[str, Tensor] = {}
        load_checkpoint(path, self.model, self.optimizer, extra)
        self.step, self.seconds_before = saved.step, saved.seconds
        self.guard = Guard(self.config.run.spike_factor, saved.recent_losses)
        prefix = "telemetry."
        remembered = {k.removeprefix(prefix): v for k, v in extra.items() if k.startswith(prefix)}
        self.telemetry.restore(remembered)
        if "rng.cpu" in extra:
            torch.set_rng_state(extra["rng.cpu"])
        # Of the last step done, for what is measured before the next one.
        warmed = min(self.step - 1 - self.config.schedule.qat_start, self.config.ternary.warmup)
        warm_up(self.model, self.config.ternary, warmed)
        logger.info("continuing from %s", path)
        if saved.torch != torch.__version__:
            logger.warning(
                "%s was written with torch %s, this is %s: the run continues, but its bits may "
                "not be those of an uninterrupted one",
                path,
                saved.torch,
                torch.__version__,
            )


def begin(config: TrainConfig, corpus: Corpus, *, resume: bool) -> TrainState:
    """Return the run at its start, or where its newest checkpoint left it.

    Raises:
        ConfigurationError: The folder holds a run and ``resume`` is False, or the checkpoint
            belongs to another configuration or text.
        CheckpointError: The newest checkpoint is damaged.
    """
    model = CausalLM(config.model, linear=nn.Linear, dtype=torch.float32)
    model.init_weights(config.run.seed)
    torch.manual_seed(config.run.seed)
    optimizer, guard = make_optimizer(model, config.optimizer), Guard(config.run.spike_factor)
    state = TrainState(config, corpus, model, optimizer, guard)
    (state.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    remove_unfinished(state.out / "checkpoints")
    newest = state.newest_checkpoint
    if not resume and (newest or state.metrics_path.exists()):
        raise ConfigurationError(
            f"run.out={config.run.out!r} holds a run already; resume it or choose another folder",
            out=config.run.out,
        )
    if newest is not None:
        state.load(newest)
    drop_rows_after(state.metrics_path, state.step)
    return state
