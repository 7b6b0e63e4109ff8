"""The learning rate as a pure function of the step, so resuming needs no state."""

from __future__ import annotations

import math

from bitnet_torch.train.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, step: int) -> float:
    """Return the rate of step ``step`` (0 is the first).

    The rate rises linearly to ``peak`` over the warm-up, then falls to ``floor * peak`` at
    the last step: along a line, or along half a cosine.
    """
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    # The last step is steps - 1; a run whose warm-up takes all but one step never falls.
    span = max(config.steps - 1 - config.warmup, 1)
    progress = (step - config.warmup) / span
    fallen = progress if config.decay == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return peak * (1 - (1 - config.floor) * fallen)
