"""The past of a pool: leases that were taken and ended, in order, to be asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory.lease_table import LeaseRow

KINDS = ("allocate", "free")


@dataclass(frozen=True)
class LeaseMoment:
    """A lease was taken or ended.

    Attributes:
        kind: ``"allocate"`` or ``"free"``.
        time_ns: When, on the clock of ``time.perf_counter_ns``.
        lease: Which.
    """

    kind: str
    time_ns: int
    lease: LeaseRow


class LeaseTimeline:
    """Moments of leases.

    Args:
        rows: The leases.

    Attributes:
        moments: All of them, oldest first.
    """

    def __init__(self, rows: Sequence[LeaseRow]) -> None:
        moments = [LeaseMoment("allocate", row.born_ns, row) for row in rows]
        moments += [
            LeaseMoment("free", row.ended_ns, row) for row in rows if row.ended_ns is not None
        ]
        self.moments = sorted(moments, key=lambda moment: moment.time_ns)

    def counts(self) -> dict[str, int]:
        """Return how many moments there are of each kind."""
        return {kind: sum(m.kind == kind for m in self.moments) for kind in KINDS}

    def query(
        self,
        kind: str | None = None,
        *,
        device: str | None = None,
        tag: str | None = None,
        min_bytes: int = 0,
        max_bytes: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        limit: int | None = None,
    ) -> list[LeaseMoment]:
        """Return the moments that meet every condition given, oldest first, the last ``limit``.

        Raises:
            ConfigurationError: There is no such kind, or the limit is below 0.
        """
        if kind is not None and kind not in KINDS:
            raise ConfigurationError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if limit is not None and limit < 0:
            raise ConfigurationError(f"limit must be at least 0, got {limit}")
        found = [
            moment
            for moment in self.moments
            if kind in (None, moment.kind)
            and device in (None, moment.lease.device)
            and tag in (None, moment.lease.tag)
            and moment.lease.nbytes >= min_bytes
            and (max_bytes is None or moment.lease.nbytes <= max_bytes)
            and (since_ns is None or moment.time_ns >= since_ns)
            and (until_ns is None or moment.time_ns <= until_ns)
        ]
        return found if limit is None else found[len(found) - min(limit, len(found)) :]
