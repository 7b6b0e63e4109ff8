"""What the leases of a pool have in common, and what could be done about it.

Looked for when it is asked for, in the rows that are kept: nothing is analysed while memory is
being taken.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitnet_torch.memory.lease_table import LeaseRow

# Fewer are a coincidence.
_LEAST = 5
# Sizes within this share of each other, and gaps that vary less than this, are alike.
_ALIKE_SIZE = 0.1
_REGULAR = 0.5
_SHORT_NS = 1_000_000


@dataclass(frozen=True)
class Pattern:
    """Something that recurs.

    Attributes:
        kind: ``"size"``, ``"rhythm"`` or ``"short-lived"``.
        key: The tag of the leases, or their size.
        count: How many leases.
        nbytes: Bytes of all of them.
        insight: What it is, in words.
        advice: What could be done; empty if nothing needs to be.
    """

    kind: str
    key: str
    count: int
    nbytes: int
    insight: str
    advice: str = ""


def find_patterns(rows: Sequence[LeaseRow]) -> tuple[Pattern, ...]:
    """Return what recurs at least five times, the most frequent first."""
    searches: tuple[Callable[[Sequence[LeaseRow]], list[Pattern]], ...] = (
        _sizes,
        _rhythms,
        _short_lived,
    )
    found = [pattern for search in searches for pattern in search(rows)]
    return tuple(sorted(found, key=lambda pattern: (-pattern.count, pattern.kind, pattern.key)))


def _sizes(rows: Sequence[LeaseRow]) -> list[Pattern]:
    """Group sizes, each group within a tenth of its smallest."""
    found, sizes = [], sorted(row.nbytes for row in rows)
    while sizes:
        alike = [size for size in sizes if size <= sizes[0] * (1 + _ALIKE_SIZE)]
        sizes = sizes[len(alike) :]
        if len(alike) >= _LEAST:
            low, high = alike[0], alike[-1]
            shown = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            insight = f"{len(alike)} leases of {shown} bytes"
            found.append(Pattern("size", shown, len(alike), sum(alike), insight))
    return found


def _rhythms(rows: Sequence[LeaseRow]) -> list[Pattern]:
    found = []
    for tag, alike in _by_tag(rows).items():
        born = sorted(row.born_ns for row in alike)
        gaps = [b - a for a, b in itertools.pairwise(born)]
        if len(alike) < _LEAST or not (mean := statistics.fmean(gaps)):
            continue
        if statistics.pstdev(gaps) / mean < _REGULAR:
            insight = f"a lease {tag or 'without a tag'!r} every {mean / 1e6:.3g} ms"
            total = sum(row.nbytes for row in alike)
            found.append(Pattern("rhythm", tag, len(alike), total, insight))
    return found


def _short_lived(rows: Sequence[LeaseRow]) -> list[Pattern]:
    found = []
    for tag, alike in _by_tag(rows).items():
        short = [r for r in alike if r.ended_ns is not None and r.ended_ns - r.born_ns < _SHORT_NS]
        if len(short) >= _LEAST:
            insight = f"{len(short)} leases {tag or 'without a tag'!r} lived less than 1 ms"
            advice = "take one lease before the loop and keep it"
            total = sum(row.nbytes for row in short)
            found.append(Pattern("short-lived", tag, len(short), total, insight, advice))
    return found


def _by_tag(rows: Sequence[LeaseRow]) -> dict[str, list[LeaseRow]]:
    groups: dict[str, list[LeaseRow]] = defaultdict(list)
    for row in rows:
        groups[row.tag].append(row)
    return groups
