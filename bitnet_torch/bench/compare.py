"""Two files of rows against each other: what became slower, and is it the program or the day.

Rows of the same subject, machine, instruction set and number of threads are compared, the
newest of each file. Where both were timed beside the same baseline, the two ratios are
compared, because what strikes the whole machine strikes the baseline too; a change counts if
it exceeds the threshold and the intervals of the ratios do not meet. Rows without a baseline are
compared by their medians, and the ranges p20 to p80 must not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitnet_torch.bench.row import Row, Subject
from bitnet_torch.errors import ConfigurationError

THRESHOLD = 0.10


@dataclass(frozen=True)
class Change:
    """One subject in both files.

    Attributes:
        subject: What was measured.
        before: Median in the first file, in the row's unit.
        after: Median in the second.
        unit: Of both.
        factor: How many times as long as before it takes, beside the baseline where there is one.
        by: ``"ratio"`` or ``"median"``: what the factor was taken from.
        verdict: ``"slower"``, ``"faster"`` or ``"same"``.
    """

    subject: Subject
    before: float
    after: float
    unit: str
    factor: float
    by: str
    verdict: str


@dataclass(frozen=True)
class RegressionReport:
    """What changed between two files.

    Attributes:
        changes: Every subject that both have, the worst first.
        only_before: Subjects that only the first file has.
        only_after: Subjects that only the second file has.
    """

    changes: tuple[Change, ...]
    only_before: tuple[Subject, ...]
    only_after: tuple[Subject, ...]

    @property
    def slower(self) -> tuple[Change, ...]:
        """The regressions."""
        return tuple(c for c in self.changes if c.verdict == "slower")


def compare_rows(
    before: Sequence[Row], after: Sequence[Row], threshold: float = THRESHOLD
) -> RegressionReport:
    """Compare the newest row of each subject.

    Args:
        before: Rows of the first file, oldest first.
        after: Rows of the second.
        threshold: Smallest change that counts, as a fraction.

    Raises:
        ConfigurationError: The threshold is not positive, or nothing is in both.
    """
    if not threshold > 0:
        raise ConfigurationError(f"threshold must be positive, got {threshold}")
    old, new = ({_key(row): row for row in rows} for rows in (before, after))
    common = [key for key in old if key in new]
    if not common:
        raise ConfigurationError(
            "the two files have no subject in common: same op, shape, form, machine, instruction "
            "set and number of threads"
        )
    changes = [_change(old[key], new[key], threshold) for key in common]
    return RegressionReport(
        tuple(sorted(changes, key=lambda c: -c.factor)),
        tuple(row.subject for key, row in old.items() if key not in new),
        tuple(row.subject for key, row in new.items() if key not in old),
    )


def render_report(report: RegressionReport) -> str:
    """Return the report for people."""
    lines = [
        f"{c.verdict:<7} {c.factor:5.2f}x by {c.by:<6}  {_name(c.subject)}: "
        f"{c.before:.5g} -> {c.after:.5g} {c.unit}"
        for c in report.changes
    ]
    lines += [f"only before: {_name(s)}" for s in report.only_before]
    lines += [f"only after:  {_name(s)}" for s in report.only_after]
    faster = sum(c.verdict == "faster" for c in report.changes)
    lines.append(
        f"{len(report.changes)} compared: {len(report.slower)} slower, {faster} faster; times as "
        "long as before"
    )
    return "\n".join(lines) + "\n"


def _key(row: Row) -> tuple[object, ...]:
    e = row.environment
    return (row.subject, e.machine, e.device, e.isa, e.threads)


def _change(old: Row, new: Row, threshold: float) -> Change:
    if old.ratio is not None and new.ratio is not None:
        # A larger ratio is better, so these are turned over to mean "times as long".
        factor = old.ratio.ratio / new.ratio.ratio
        worse, better = new.ratio.high < old.ratio.low, new.ratio.low > old.ratio.high
        by = "ratio"
    else:
        factor = new.value.median / old.value.median
        worse, better = new.value.p20 > old.value.p80, new.value.p80 < old.value.p20
        by = "median"
    verdict = "same"
    if worse and factor > 1 + threshold:
        verdict = "slower"
    elif better and factor < 1 / (1 + threshold):
        verdict = "faster"
    return Change(
        old.subject, old.value.median, new.value.median, new.value.unit, factor, by, verdict
    )


def _name(s: Subject) -> str:
    size = f"M={s.m} N={s.n} K={s.k}" if s.n else f"M={s.m} K={s.k}"
    layers = f" {s.layers} layers" if s.layers else ""
    beside = f" beside {s.baseline}" if s.baseline else ""
    return f"{s.suite} {s.op} {size}{layers} {s.candidate} {s.dtype} {s.buffers}{beside}"
