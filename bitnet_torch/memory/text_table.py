"""The recorded memory as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory.records import Tally

if TYPE_CHECKING:
    from bitnet_torch.memory.account import Account
    from bitnet_torch.memory.report import Report

COLUMNS: dict[str, Callable[[Tally], int]] = {
    "peak": lambda tally: tally.peak,
    "current": lambda tally: tally.current,
    "allocated": lambda tally: tally.allocated,
    "allocs": lambda tally: tally.allocs,
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_OUTSIDE = "(outside)"
_STEP = 1024


def shown_bytes(count: float) -> str:
    """Return a number of bytes in the unit that fits, with three digits."""
    for unit in _UNITS:
        if abs(count) < _STEP or unit == _UNITS[-1]:
            break
        count /= _STEP
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"


def tally_dict(tally: Tally) -> dict[str, int]:
    """Return the columns of a tally by name."""
    return {name: column(tally) for name, column in COLUMNS.items()}


def largest(tallies: Mapping[str, Tally], rows: int) -> dict[str, dict[str, int]]:
    """Return the tallies with the largest peaks."""
    order = sorted(tallies, key=lambda name: -tallies[name].peak)
    return {name: tally_dict(tallies[name]) for name in order[:rows]}


def render(report: Report, order_by: str, rows: int) -> str:
    """Return what the bytes were for, and the tables of modules, operators and leases.

    Args:
        report: What was recorded.
        order_by: ``"peak"``, ``"current"``, ``"allocated"`` or ``"allocs"``.
        rows: Lines of each table.

    Raises:
        ConfigurationError: There is no such column.
    """
    if order_by not in COLUMNS:
        raise ConfigurationError(f"order_by must be one of {', '.join(COLUMNS)}, got {order_by!r}")
    total = report.total
    lines = [
        f"CPU memory, {'exact' if report.exact else 'inexact'} ({report.source}): "
        f"{shown_bytes(total.current)} live, peak {shown_bytes(total.peak)}, "
        f"{shown_bytes(total.allocated)} in {total.allocs:,} allocations",
        *_account(report.account, rows),
        *_tallies("module", report.modules, order_by, rows),
        *_tallies("operator", report.ops, order_by, rows),
        *_leases(report, rows),
    ]
    return "\n".join(lines) + "\n"


def _account(account: Account | None, rows: int) -> list[str]:
    if account is None:
        return []
    shown = [*list(account.parts.items())[:rows], ("unexplained", account.unexplained)]
    lines = ["", f"{shown_bytes(account.total)} {account.moment}, the fullest of these moments:"]
    for name, nbytes in shown:
        lines.append(f"{shown_bytes(nbytes):>11} {nbytes / max(account.total, 1):>6.1%}  {name}")
    return lines


def _tallies(kind: str, tallies: Mapping[str, Tally], order_by: str, rows: int) -> list[str]:
    order = sorted(tallies, key=lambda name: (-COLUMNS[order_by](tallies[name]), name))
    lines = ["", f"{'peak':>11} {'live':>11} {'allocated':>11} {'allocs':>8}  {kind}"]
    for name in order[:rows]:
        tally = tallies[name]
        lines.append(
            f"{shown_bytes(tally.peak):>11} {shown_bytes(tally.current):>11} "
            f"{shown_bytes(tally.allocated):>11} {tally.allocs:>8,}  {name or _OUTSIDE}"
        )
    if len(order) > rows:
        lines.append(f"{'':>45}and {len(order) - rows} more")
    return lines


def _leases(report: Report, rows: int) -> list[str]:
    stats = report.stats
    lines = [
        "",
        f"pool: {stats.live_leases} leases of {shown_bytes(stats.pool_allocated)}, peak "
        f"{shown_bytes(stats.pool_peak)}, {shown_bytes(stats.cached)} cached, {stats.hits:,} hits, "
        f"{stats.misses:,} misses",
    ]
    order = sorted(report.tags.items(), key=lambda item: -item[1][0])
    lines += [
        f"{shown_bytes(nbytes):>11} in {count:,} leases  {tag or '(no tag)'}"
        for tag, (nbytes, count) in order[:rows]
    ]
    return lines
