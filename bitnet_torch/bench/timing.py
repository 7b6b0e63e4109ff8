"""Time a candidate beside its baseline: verified first, in turn, from rotating buffers.

One sample is as many calls as fill a fraction of a millisecond: long beside the reading of the
clock, short beside the time slices of the operating system, so that few samples are cut in two
when the machine is busy. A call takes the next buffer of its pool.

Samples come in pairs, candidate and baseline, and a coin decides who goes first. Strict
alternation is not enough: on a machine whose scheduler beats in time with the samples it called
up to 4 of 20 unchanged pairs different. With a coin the test of :mod:`~bitnet_torch.bench.pairs`
is valid whatever the machine does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bitnet_torch.bench.pairs import LEAST_PAIRS, PairedRatio, paired_ratio
from bitnet_torch.bench.verify import Call, Check
from bitnet_torch.errors import ConfigurationError

Clock = Callable[[], float]


def no_wait() -> None:
    """Return at once: on a CPU a call has done its work when it returns."""


@dataclass(frozen=True)
class Contender:
    """Something that can be timed.

    Attributes:
        name: What the row calls it.
        calls: One for each buffer of its pool; all of them do the same work.
        check: Verifies all of them; see :mod:`bitnet_torch.bench.verify`.
        wait: Waits for the device, at the end of a sample.
    """

    name: str
    calls: Sequence[Call]
    check: Check
    wait: Callable[[], None] = no_wait


@dataclass(frozen=True)
class Effort:
    """How long to measure. The numbers do not depend on what is measured, or the test would lie.

    Attributes:
        pairs: Largest number of pairs.
        least_pairs: These are made however long they take.
        seconds: After so many, no further pair is begun.
        sample_seconds: Length of a sample, at least one call.
    """

    pairs: int = 400
    least_pairs: int = 15
    seconds: float = 3.0
    sample_seconds: float = 3e-4

    def __post_init__(self) -> None:
        if not LEAST_PAIRS <= self.least_pairs <= self.pairs:
            raise ConfigurationError(
                f"least_pairs must lie in [{LEAST_PAIRS}, pairs={self.pairs}], "
                f"got {self.least_pairs}"
            )
        if not self.seconds >= 0:
            raise ConfigurationError(f"seconds must not be negative, got {self.seconds}")


QUICK = Effort(least_pairs=LEAST_PAIRS, seconds=1.0)


@dataclass(frozen=True)
class Spread:
    """The middle and the width of a series.

    Attributes:
        median: The figure.
        p20: A fifth of the samples were below.
        p80: A fifth of the samples were above.
        samples: How many there were.
    """

    median: float
    p20: float
    p80: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise a series."""
        p20, median, p80 = (float(q) for q in np.percentile(values, (20, 50, 80)))
        return cls(median, p20, p80, len(values))


@dataclass(frozen=True)
class Measured:
    """What was found out about one candidate.

    Attributes:
        seconds: Of one call of the candidate.
        verified: What its check compared.
        baseline_seconds: Of one call of the baseline, if there is one.
        baseline_verified: What the baseline's check compared.
        ratio: Baseline by candidate, by pairs.
        how: How both were timed, in words; empty for the host's clock.
    """

    seconds: Spread
    verified: str
    baseline_seconds: Spread | None = None
    baseline_verified: str = ""
    ratio: PairedRatio | None = None
    how: str = ""


class Sampler(Protocol):
    """Takes samples of a contender that was verified.

    Attributes:
        how: How, in words; empty for the host's clock round calls.
    """

    how: str

    def sample(self) -> float:
        """Return the seconds of one call, on average over a sample."""
        ...


MakeSampler = Callable[[Contender], Sampler]


def measure(
    candidate: Contender,
    baseline: Contender | None,
    effort: Effort,
    clock: Clock = time.perf_counter,
    make_sampler: MakeSampler | None = None,
) -> Measured:
    """Verify both, then time them in turn.

    Args:
        candidate: Ours.
        baseline: The other, or None.
        effort: How long.
        clock: Gives the host's time.
        make_sampler: Makes what takes samples; None for the host's clock round calls.

    Raises:
        BitNetError: A result is wrong; nothing was timed.
    """
    baselines = [] if baseline is None else [baseline]
    return measure_together(candidate, baselines, effort, clock, make_sampler)[0]


def measure_together(
    candidate: Contender,
    baselines: Sequence[Contender],
    effort: Effort,
    clock: Clock = time.perf_counter,
    make_sampler: MakeSampler | None = None,
) -> list[Measured]:
    """Verify all, then time them in rounds; return the candidate beside each, or alone.

    The arguments are those of :func:`measure`.

    Raises:
        BitNetError: A result is wrong; nothing was timed.
    """
    contenders = [candidate, *baselines]
    verified = [c.check() for c in contenders]
    make = make_sampler or (lambda c: _Sampler(c, effort.sample_seconds, clock))
    samplers = [make(c) for c in contenders]
    own, *others = _take_turns(samplers, effort, clock)
    mine, first = Spread.of(own), samplers[0].how
    if not others:
        return [Measured(mine, verified[0], how=first)]
    return [
        Measured(
            mine,
            verified[0],
            Spread.of(series),
            words,
            paired_ratio(own, series),
            "; ".join(how for how in (first, sampler.how) if how),
        )
        for series, words, sampler in zip(others, verified[1:], samplers[1:], strict=True)
    ]


def _take_turns(samplers: Sequence[Sampler], effort: Effort, clock: Clock) -> list[list[float]]:
    series: list[list[float]] = [[] for _ in samplers]
    order = list(range(len(samplers)))
    coin = random.Random(0)
    end = clock() + effort.seconds
    while len(series[0]) < effort.pairs and (len(series[0]) < effort.least_pairs or clock() < end):
        for which in order:
            series[which].append(samplers[which].sample())
        coin.shuffle(order)
    return series


class _Sampler:
    """Takes samples of one contender by the host's clock, going round its buffers."""

    how = ""

    def __init__(self, contender: Contender, seconds: float, clock: Clock) -> None:
        self._contender, self._clock = contender, clock
        self._next = 0
        self._calls = 1
        # The first call warms up; the count is settled when a sample is long enough.
        taken = self.sample()
        while self._calls < 1 << 20:
            taken = self.sample() * self._calls
            if taken >= seconds / 2:
                break
            self._calls *= 2

    def sample(self) -> float:
        """Return the seconds of one call, on average over a sample."""
        calls, count, start = self._contender.calls, self._calls, self._next
        chosen = [calls[(start + i) % len(calls)] for i in range(count)]
        self._next = (start + count) % len(calls)
        begin = self._clock()
        for call in chosen:
            call()
        self._contender.wait()
        return (self._clock() - begin) / count
