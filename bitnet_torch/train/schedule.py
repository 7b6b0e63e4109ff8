"""Rates, decay and warm-up as pure functions of the step, so that resuming needs no state.

The learning rate rises to its peak over the warm-up, then falls to ``floor * peak`` at the last
step: along a line, along half a cosine, or in two stages. In two stages it falls along the line,
from ``switch_at * steps`` on times ``second_peak``, and there decay ends: BitNet's own recipe,
which drops from 1.5e-3 to 1e-3 and from 0.1 to 0 half-way.

Source of the two stages: Ma et al. 2024, "The Era of 1-bit LLMs: Training Tips, Code and FAQ",
table 2. Their rates are for runs of 100 billion tokens, 4 to 6 times those of full precision.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from bitnet_torch.train.config import OptimizerConfig, ScheduleConfig


class HasGroups(Protocol):
    """An optimizer of PyTorch, or several behind one face."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters and their settings."""
        ...


def learning_rate(config: ScheduleConfig, peak: float, step: int) -> float:
    """Return the rate of step ``step`` (0 is the first)."""
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    # The last step is steps - 1; a run whose warm-up takes all but one step never falls.
    span = max(config.steps - 1 - config.warmup, 1)
    progress = (step - config.warmup) / span
    fallen = (1 - math.cos(math.pi * progress)) / 2 if config.decay == "cosine" else progress
    rate = peak * (1 - (1 - config.floor) * fallen)
    return rate * config.second_peak if in_second_stage(config, step) else rate


def weight_decay(config: ScheduleConfig, decay: float, step: int) -> float:
    """Return the decay of step ``step``: ``decay``, and 0 in the second of two stages."""
    return 0.0 if in_second_stage(config, step) else decay


def in_second_stage(config: ScheduleConfig, step: int) -> bool:
    """Return whether the second of two stages has begun."""
    return config.decay == "two-stage" and step >= config.switch_at * config.steps


def strength_at(warmup: int, steps_since_switch: int) -> float:
    """Return lambda, the strength of quantisation: ``min(t / warmup, 1)``; 1 without a warm-up.

    Source: Mekkouri et al. 2024, "Fine-tuning LLMs to 1.58bit" (Hugging Face blog).
    """
    return min(steps_since_switch / warmup, 1.0) if warmup else 1.0


def set_rates(
    optimizer: HasGroups, schedule: ScheduleConfig, config: OptimizerConfig, step: int
) -> float:
    """Give every group its rate and decay for step ``step``, and return the rate.

    A group's rate is multiplied by its ``"rate"``, and its decay is its ``"decay"``, where
    :func:`~bitnet_torch.train.optimizer.make_optimizer` has set them.
    """
    rate = learning_rate(schedule, config.learning_rate, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
        if "decay" in group:
            group["weight_decay"] = weight_decay(schedule, group["decay"], step)
    return rate
