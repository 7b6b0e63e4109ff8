"""Is one of two really faster? A ratio with an exact interval, from measurements made in pairs.

Candidate and baseline are timed in turn, so what the machine does at the moment (a busy
neighbour, a clock that drops) strikes both members of a pair and leaves their ratio alone. Let
``d_i = log(baseline_i / candidate_i)``. If both are equally fast, exchanging the members of a
pair changes nothing but the sign of ``d_i``, so the signed-rank statistic has Wilcoxon's
distribution, whatever the noise: it is computed exactly here, not approximated. The estimate
is the median of all averages ``(d_i + d_j) / 2`` (Hodges and Lehmann), the interval lies between
two of these averages, and neither minds a few wild pairs.

With a confidence of 99.9 % and differences below 2 % not called any, one unchanged pair of
programs in thousands is called different.

Source: Hollander, Wolfe, Chicken: Nonparametric Statistical Methods, 3rd ed., section 3.1-3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet_torch.errors import ConfigurationError

CONFIDENCE = 0.999
# With fewer, no outcome is so one-sided that it has this confidence.
LEAST_PAIRS = 12
# Below this a difference is nobody's business: code alignment alone makes as much.
SMALLEST = 0.02
# Programs whose interval lies inside of this are called the same.
ALIKE = 0.10


@dataclass(frozen=True)
class PairedRatio:
    """How many times longer the baseline takes than the candidate.

    Attributes:
        ratio: The estimate; above 1 the candidate is faster.
        low: Lower end of the interval.
        high: Upper end.
        p: Chance of pairs at least as one-sided as these, if both were equally fast.
        pairs: How many pairs.
        confidence: Of the interval.
    """

    ratio: float
    low: float
    high: float
    p: float
    pairs: int
    confidence: float = CONFIDENCE

    @property
    def verdict(self) -> str:
        """What can be said of the candidate, with the confidence of the interval.

        ``"faster"`` or ``"slower"``; ``"same"`` if a difference of ``ALIKE`` is ruled out;
        otherwise ``"unsure"``: the noise was too much for so few pairs.
        """
        if self.low > 1.0 and self.ratio >= 1.0 + SMALLEST:
            return "faster"
        if self.high < 1.0 and self.ratio <= 1.0 / (1.0 + SMALLEST):
            return "slower"
        alike = self.low >= 1.0 / (1.0 + ALIKE) and self.high <= 1.0 + ALIKE
        return "same" if alike else "unsure"

    def __str__(self) -> str:
        span = f"{self.confidence * 100:g} % sure of {self.low:.3f} to {self.high:.3f}"
        return f"{self.ratio:.3f}x ({span}, {self.pairs} pairs)"


def paired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> PairedRatio:
    """Compare two series of durations whose i-th members were measured side by side.

    Args:
        candidate: Durations, any unit, all positive.
        baseline: As many, in the same unit.

    Raises:
        ConfigurationError: The lengths differ, there are fewer than ``LEAST_PAIRS`` pairs, or a
            duration is not positive.
    """
    if len(candidate) != len(baseline) or len(candidate) < LEAST_PAIRS:
        raise ConfigurationError(
            f"needs equally many durations, at least {LEAST_PAIRS}, "
            f"got {len(candidate)} and {len(baseline)}"
        )
    if min(*candidate, *baseline) <= 0:
        raise ConfigurationError("durations must be positive; the clock is too coarse")
    d = np.log(np.asarray(baseline, np.float64)) - np.log(np.asarray(candidate, np.float64))
    averages = _walsh_averages(d)
    chance = _signed_rank_cdf(len(d))
    low, high = _interval(averages, chance)
    return PairedRatio(
        math.exp(float(np.median(averages))), low, high, _p_value(averages, chance), len(d)
    )


def _walsh_averages(d: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = np.triu_indices(len(d))
    return np.sort((d[rows] + d[columns]) / 2)


def _signed_rank_cdf(n: int) -> NDArray[np.float64]:
    """Return P(T <= t) for t = 0 .. n(n+1)/2, T the sum of the ranks of the positive ones."""
    probability = np.zeros(n * (n + 1) // 2 + 1)
    probability[0] = 1.0
    for rank in range(1, n + 1):
        shifted = np.zeros_like(probability)
        shifted[rank:] = probability[: len(probability) - rank]
        probability = (probability + shifted) / 2
    return probability.cumsum()


def _interval(averages: NDArray[np.float64], chance: NDArray[np.float64]) -> tuple[float, float]:
    # The largest c with P(T <= c - 1) <= (1 - confidence) / 2; the c-th average from either end.
    c = int(np.searchsorted(chance, (1.0 - CONFIDENCE) / 2, side="right"))
    return math.exp(averages[c - 1]), math.exp(averages[-c])


def _p_value(averages: NDArray[np.float64], chance: NDArray[np.float64]) -> float:
    # The statistic is the number of positive averages; a zero counts half, rounded inwards.
    positive = float((averages > 0).sum()) + 0.5 * float((averages == 0).sum())
    tail = math.ceil(min(positive, len(averages) - positive))
    return min(1.0, 2.0 * float(chance[tail]))
