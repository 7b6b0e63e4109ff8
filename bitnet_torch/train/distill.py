"""The loop that distils: one optimizer step a turn, and a row that says what it did.

::

    for row in distill(Distillation(student, teacher, config), batch_of, schedule):
        log.write(row)

The caller turns the loop, so it logs, evaluates, saves and stops as it likes. Batches and rates
are functions of the step, as in :func:`bitnet_torch.train.train`; the optimizer is the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bitnet_torch.errors import BitNetError
from bitnet_torch.train.config import OptimizerConfig, ScheduleConfig
from bitnet_torch.train.distillation import Distillation
from bitnet_torch.train.metrics import Row
from bitnet_torch.train.optimizer import make_optimizer
from bitnet_torch.train.schedule import set_rates


def distill(
    distillation: Distillation,
    batch_of: Callable[[int], Tensor],
    schedule: ScheduleConfig,
    optimizer: OptimizerConfig | None = None,
    *,
    norms_every: int = 50,
) -> Iterator[Row]:
    """Train the student, yielding a row after every step.

    A row has ``step`` (steps done), ``loss``, each of its parts with its weight applied,
    ``learning_rate``, ``gradient_norm`` before it is clipped and, at the first and then every
    ``norms_every`` steps, ``gradient_norms``: the norm of each part's own gradient. Parameters
    that require no gradient stay as they are.

    Args:
        distillation: Student, teacher and losses.
        batch_of: Step (0 is the first) to int64 windows (B, T + 1).
        schedule: Steps and rates; its switch to ternary is not this loop's business.
        optimizer: AdamW's settings; the defaults if None.
        norms_every: Steps between measurements, each of which costs a backward pass a part.

    Raises:
        BitNetError: The loss or its gradient is not finite; the student has not made that step.
    """
    settings = optimizer or OptimizerConfig()
    student = distillation.student
    adamw = make_optimizer(student, settings)
    student.train()
    for step in range(schedule.steps):
        rate = set_rates(adamw, schedule, settings, step)
        losses = distillation.losses(batch_of(step))
        norms = distillation.gradient_norms(losses) if step % norms_every == 0 else None
        adamw.zero_grad()
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), settings.grad_clip).item()
        row: Row = {"step": step + 1, "loss": losses.total.item()}
        row |= {name: loss.item() for name, loss in losses.parts.items()}
        row |= {"learning_rate": rate, "gradient_norm": norm}
        if norms is not None:
            row["gradient_norms"] = norms
        _check_finite(row)
        adamw.step()
        yield row


def _check_finite(row: Row) -> None:
    if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
        raise BitNetError(
            f"step {row['step']}: the loss is {row['loss']} and its gradient's norm "
            f"{row['gradient_norm']}; the parts and their gradients are in the context",
            **row,
        )
