"""Train a byte-level language model: full precision first, then ternary, in one run.

From scratch, ternary weights learn slowly: most updates of the latent weights change no
code. Starting in full precision and switching the forward pass to ternary part of the way
ends lower for the same number of steps. The switch keeps the parameters and the optimizer's state
(:mod:`bitnet_torch.train.switch` retypes the layers in place), so it is one line below.

What a step does depends on the step number, the weights, the optimizer's state and PyTorch's
random numbers alone, and a checkpoint holds them all:

- the batch is drawn from (seed, step), and rates and decay are functions of the step,
- the layers are ternary from step ``schedule.qat_start`` on, and warm up as a function of it.

So a run that is killed and continued ends in the same bits as one that was left alone, on
the same machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.memory import HybridMemoryPool, with_recovery
from bitnet_torch.memory.recovery import recording
from bitnet_torch.train.config import TrainConfig
from bitnet_torch.train.data import batch_of_step, load_corpus, spread_windows
from bitnet_torch.train.finish import finish
from bitnet_torch.train.interrupt import Interrupt, deferred_interrupt
from bitnet_torch.train.metrics import MetricsLog
from bitnet_torch.train.progress import TrainingBar
from bitnet_torch.train.result import RunResult, is_ternary
from bitnet_torch.train.schedule import set_rates
from bitnet_torch.train.settings import matmul_precision, threads
from bitnet_torch.train.state import TrainState, begin

BITS_PER_NAT = 1 / math.log(2)


def train(config: TrainConfig, *, resume: bool = False) -> RunResult:
    """Run ``config`` to its end and return what it made.

    The folder ``run.out`` holds, in the end: ``checkpoints/``, ``metrics.jsonl``, ``curve.png``,
    ``telemetry.png`` (of a ternary run), ``model/`` (loadable) and ``result.json``. Ctrl-C
    finishes the step, saves a checkpoint and raises KeyboardInterrupt. PyTorch's settings and
    random numbers are changed for the run and put back.

    Args:
        config: The run.
        resume: Continue from the newest checkpoint; from the start if there is none yet.

    Raises:
        ConfigurationError: The text is not there; ``run.out`` holds a run and ``resume`` is
            False; or the checkpoint belongs to another configuration or text.
        CheckpointError: The newest checkpoint is damaged, or one cannot be written.
        MissingDependencyError: tqdm or matplotlib is not installed.
        DivergenceError: The loss or its gradient is not finite, or the loss is a spike.
    """
    # Asked for now, not after hours of training.
    require("tqdm", extra="train")
    require("matplotlib", extra="plot")
    corpus = load_corpus(config.data, config.model.vocab_size)
    with threads(config.run.threads), torch.random.fork_rng(devices=()):
        state = begin(config, corpus, resume=resume)
        with matmul_precision(config.run.matmul_precision):
            _run_steps(state)
        return finish(state)


def _run_steps(state: TrainState) -> None:
    schedule, data = state.config.schedule, state.config.data
    tokens = data.batch * data.context
    with (
        contextlib.closing(MetricsLog(state.metrics_path)) as metrics,
        TrainingBar(steps=schedule.steps, done=state.step) as bar,
        deferred_interrupt() as interrupt,
    ):
        while state.step < schedule.steps:
            started = time.perf_counter()
            state.prepare_step()
            rate = set_rates(state.optimizer, schedule, state.config.optimizer, state.step)
            loss = _step(state, rate)
            state.step += 1
            speed = tokens / (time.perf_counter() - started)
            _log_if_due(state, metrics, loss, rate, speed)
            phase = "ternary" if is_ternary(state.model) else "full precision"
            bar.advance(phase=phase, loss=loss, held_out=state.held_out, speed=speed)
            _save_if_due(state, metrics, interrupt)


def _step(state: TrainState, rate: float) -> float:
    """Do one optimizer step and return its loss in nats per prediction."""
    data = state.config.data
    windows = batch_of_step(
        state.corpus.train,
        seed=state.config.run.seed,
        step=state.step,
        context=data.context,
        batch=data.batch,
    )
    with recording(state.recoveries):
        value = with_recovery(
            functools.partial(_backward, state, windows),
            min(state.piece or len(windows), len(windows)),
            name=f"step {state.step}",
            device=windows.device,
            pool=HybridMemoryPool.instance(),
        )
    norm = torch.nn.utils.clip_grad_norm_(
        state.model.parameters(), state.config.optimizer.grad_clip
    )
    state.guard.check(state.step, value, norm.item(), rate, state.newest_checkpoint)
    state.optimizer.step()
    return value


def _backward(state: TrainState, windows: Tensor, size: int) -> float:
    """Compute the gradient in pieces of ``size`` windows and return the loss of all of them.

    Smaller pieces sum the same gradient in another order, so the steps are kept with the result.
    """
    if state.piece is not None or size < len(windows):
        state.piece = size
    state.optimizer.zero_grad()
    value = 0.0
    for piece in windows.split(size):
        loss = _loss(state, piece) * (len(piece) / len(windows))
        loss.backward()
        value += loss.item()
    return value


def _loss(state: TrainState, windows: Tensor) -> Tensor:
    logits = state.model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def _log_if_due(
    state: TrainState, metrics: MetricsLog, loss: float, rate: float, speed: float
) -> None:
    run, unit = state.config.run, state.config.data.unit
    last = state.step == state.config.schedule.steps
    if last or state.step % run.log_every == 0:
        row = {"step": state.step, "loss": loss, f"bits_per_{unit}": loss * BITS_PER_NAT}
        metrics.write({**row, "learning_rate": rate, "tokens_per_second": round(speed, 1)})
    if run.telemetry_every and (last or state.step % run.telemetry_every == 0):
        figures = state.telemetry.measure(state.model, state.step)
        if figures is not None:
            metrics.write({"step": state.step, "telemetry": figures})
    if last or state.step % run.eval_every == 0:
        state.held_out = _held_out_sample(state)
        metrics.write({"step": state.step, f"held_out_bits_per_{unit}": state.held_out})


def _held_out_sample(state: TrainState) -> float:
    """Return the bits per prediction of evenly spread held-out windows, as the loss has them."""
    windows = spread_windows(
        state.corpus.held_out,
        context=state.config.data.context,
        count=state.config.run.eval_windows,
    )
    total = 0.0
    with torch.inference_mode():
        for group in windows.split(state.config.data.batch):
            total += _loss(state, group).item() * len(group)
    return total / len(windows) * BITS_PER_NAT


def _save_if_due(state: TrainState, metrics: MetricsLog, interrupt: Interrupt) -> None:
    last = state.step == state.config.schedule.steps
    due = state.step % state.config.run.checkpoint_every == 0
    if not (last or due or interrupt.requested):
        return
    metrics.sync()
    path = state.save()
    if interrupt.requested:
        raise KeyboardInterrupt(f"stopped after step {state.step}; continue from {path}")
