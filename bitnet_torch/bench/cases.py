"""A case: one op on one shape, with its contenders and the work that it cannot avoid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitnet_torch.bench.environment import Environment
from bitnet_torch.bench.limits import Limits
from bitnet_torch.bench.row import Quantity, Reached, Row, Subject
from bitnet_torch.bench.timing import (
    Contender,
    Effort,
    MakeSampler,
    Measured,
    Spread,
    measure,
    measure_together,
)


@dataclass(frozen=True)
class Case:
    """What to measure.

    Attributes:
        subject: Name, shape and form of it.
        candidate: Ours.
        baseline: The strongest other way to compute it, or None.
        nbytes: Bytes that a call must read and write.
        macs: Multiply-accumulates of a call.
    """

    subject: Subject
    candidate: Contender
    baseline: Contender | None
    nbytes: int
    macs: int = 0


# Cases hold gigabytes of buffers: they are made one at a time, when their turn comes.
MakeCase = Callable[[], Case]


@dataclass(frozen=True)
class Run:
    """What all rows of one run share.

    Attributes:
        environment: Machine, software and moment.
        limits: Measured at its beginning; None on a machine that the harness cannot measure.
        effort: How long each case is measured.
        make_sampler: Takes the samples on a device of its own clock; None for the host's.
    """

    environment: Environment
    limits: Limits | None
    effort: Effort
    make_sampler: MakeSampler | None = None

    def row(self, case: Case) -> Row:
        """Verify and time one case.

        Raises:
            BitNetError: A result is wrong; nothing was timed.
        """
        sampler = self.make_sampler
        found = measure(case.candidate, case.baseline, self.effort, make_sampler=sampler)
        return self._row(case, found)

    def rows_together(self, cases: Sequence[Case]) -> list[Row]:
        """Verify and time one candidate beside several baselines, all in one series of rounds.

        Args:
            cases: With the candidate of the first, and a baseline each.

        Raises:
            BitNetError: A result is wrong; nothing was timed.
        """
        baselines = [case.baseline for case in cases if case.baseline is not None]
        found = measure_together(
            cases[0].candidate, baselines, self.effort, make_sampler=self.make_sampler
        )
        return [self._row(case, one) for case, one in zip(cases, found, strict=True)]

    def _row(self, case: Case, found: Measured) -> Row:
        return Row(
            subject=case.subject,
            value=_microseconds(found.seconds),
            verified=found.verified,
            environment=self.environment,
            nbytes=case.nbytes,
            macs=case.macs,
            baseline=None
            if found.baseline_seconds is None
            else _microseconds(found.baseline_seconds),
            baseline_verified=found.baseline_verified,
            ratio=found.ratio,
            reached=self._reached(case, found),
            limits=self.limits,
            timed=found.how,
        )

    def _reached(self, case: Case, found: Measured) -> Reached | None:
        if self.limits is None:
            return None
        bound = self.limits.bound(case.nbytes, case.macs, case.subject.buffers == "cold")
        if bound is None:
            return None
        return Reached(bound.what, bound.seconds * 1e6, bound.seconds / found.seconds.median)


def _microseconds(spread: Spread) -> Quantity:
    scaled = (spread.median * 1e6, spread.p20 * 1e6, spread.p80 * 1e6)
    return Quantity("us", *scaled, spread.samples)
