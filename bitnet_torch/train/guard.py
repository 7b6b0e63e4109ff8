"""The guard of a run: it stops at the first step that would spoil the weights.

A loss or gradient that is not finite ends a run at once. So does a loss far above what the last
steps had: weights that have diverged stay so, and every checkpoint written after would replace a
good one. The optimizer has not made the step that raises, so the last checkpoint is from before.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from pathlib import Path

from bitnet_torch.errors import DivergenceError

WINDOW = 64
# Fewer losses have no median worth the name.
LEAST = 32


class Guard:
    """Watches the losses of a run.

    Args:
        factor: A loss above this many times the median stops the run; 0 for never.
        recent: Losses of the last steps, of a run that is continued.
    """

    def __init__(self, factor: float, recent: list[float] | None = None) -> None:
        self.factor = factor
        self.recent: deque[float] = deque(recent or [], WINDOW)

    def forget(self) -> None:
        """Start anew: what follows is not comparable, as after the switch to ternary."""
        self.recent.clear()

    def check(self, step: int, loss: float, norm: float, rate: float, last: Path | None) -> None:
        """Take the loss of a step whose gradient is there and which is not made yet.

        Args:
            step: Its number.
            loss: In nats per prediction.
            norm: Of its gradient, before clipping.
            rate: Learning rate.
            last: The newest checkpoint.

        Raises:
            DivergenceError: Loss or norm is not finite, or the loss is a spike.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss is {loss} and its gradient's norm {norm}"
        elif self._is_spike(loss):
            median = statistics.median(self.recent)
            what = (
                f"the loss is {loss:.4g}, {loss / median:.1f} times the median {median:.4g} of the "
                f"last {len(self.recent)} steps (run.spike_factor={self.factor:g})"
            )
        else:
            self.recent.append(loss)
            return
        raise DivergenceError(
            f"step {step}: {what}; a lower optimizer.learning_rate (now {rate:.2e}) usually helps; "
            f"the last good checkpoint is {last}",
            step=step,
            loss=loss,
            gradient_norm=norm,
            checkpoint=str(last),
        )

    def _is_spike(self, loss: float) -> bool:
        if not self.factor or len(self.recent) < LEAST:
            return False
        return loss > self.factor * statistics.median(self.recent)
