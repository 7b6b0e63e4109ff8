"""Leaks: what each repetition of the same work leaves behind.

Age proves nothing, weights are old. Work that is repeated and leaves something alive *every* time
leaks; the first repetitions may fill caches, and the last may hold its own result.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory.records import Allocation
from bitnet_torch.memory.sites import Site
from bitnet_torch.memory.snapshot import KEYS


@dataclass(frozen=True)
class Leak:
    """A place whose storages stay, repetition after repetition.

    Attributes:
        key: The line, or operator and module where no stacks are recorded.
        site: The line; None without stacks.
        op: The operator that made the last one.
        module: The module it was made in.
        nbytes: Bytes left behind by all measured repetitions.
        count: Storages left behind.
    """

    key: str
    site: Site | None
    op: str
    module: str
    nbytes: int
    count: int


@dataclass(frozen=True)
class LeakReport:
    """What was found.

    Attributes:
        leaks: The largest first.
        iterations: Repetitions that were measured.
        exact: Whether every allocation was seen.
    """

    leaks: tuple[Leak, ...]
    iterations: int
    exact: bool

    def __bool__(self) -> bool:
        return bool(self.leaks)

    @property
    def nbytes(self) -> int:
        """Bytes left behind in all."""
        return sum(leak.nbytes for leak in self.leaks)

    def __str__(self) -> str:
        if not self.leaks:
            return f"no leak in {self.iterations} repetitions"
        lines = [f"{len(self.leaks)} leaks in {self.iterations} repetitions"]
        lines += [f"  {leak.nbytes:+,} bytes, {leak.count} storages: {leak.key}" for leak in self]
        return "\n".join(lines)

    def __iter__(self) -> Any:
        return iter(self.leaks)


def find_leaks(
    work: Callable[[], Any],
    numbers: Callable[[], int],
    live: Callable[[], Sequence[Allocation]],
    *,
    warmup: int,
    iterations: int,
    min_bytes: int,
    exact: bool,
) -> LeakReport:
    """Repeat ``work`` and report what every measured repetition left alive.

    Args:
        work: What is repeated; its result is let go of at once.
        numbers: Gives the number of the newest allocation.
        live: Gives the live storages.
        warmup: Repetitions before the measured ones.
        iterations: Measured repetitions.
        min_bytes: Places that leave less in a repetition are not reported.
        exact: For the report.

    Raises:
        ConfigurationError: Fewer than 2 measured repetitions, or a negative setting.
    """
    if iterations < 2 or warmup < 0 or min_bytes < 0:
        raise ConfigurationError(
            f"detect_leaks needs iters >= 2, warmup >= 0 and min_bytes >= 0, got {iterations}, "
            f"{warmup} and {min_bytes}"
        )
    marks = _repeated(work, numbers, warmup, iterations)
    left: dict[str, list[list[Allocation]]] = {}
    for allocation in live():
        turn = _turn(allocation.number, marks)
        if turn is not None:
            turns = left.setdefault(KEYS["site"](allocation), [[] for _ in range(iterations)])
            turns[turn].append(allocation)
    leaks = [
        _leak(key, turns)
        for key, turns in left.items()
        if all(sum(a.nbytes for a in turn) >= max(min_bytes, 1) for turn in turns)
    ]
    leaks.sort(key=lambda leak: (-leak.nbytes, leak.key))
    return LeakReport(tuple(leaks), iterations, exact)


def _repeated(
    work: Callable[[], Any], numbers: Callable[[], int], warmup: int, iterations: int
) -> list[int]:
    """Repeat ``work``; return the newest allocation before and after every measured turn."""
    for _ in range(warmup):
        work()
    gc.collect()
    marks = [numbers()]
    for _ in range(iterations):
        work()
        gc.collect()
        marks.append(numbers())
    return marks


def _turn(number: int, marks: Sequence[int]) -> int | None:
    """Return in which repetition an allocation was made."""
    for turn in range(len(marks) - 1):
        if marks[turn] < number <= marks[turn + 1]:
            return turn
    return None


def _leak(key: str, turns: Sequence[Sequence[Allocation]]) -> Leak:
    every = [allocation for turn in turns for allocation in turn]
    last = turns[-1][-1]
    return Leak(key, last.site, last.op, last.module, sum(a.nbytes for a in every), len(every))
