"""Rows for people: one line each, and what the run had to do with the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitnet_torch.bench.row import Quantity, Row

_COLUMNS: tuple[tuple[str, str], ...] = (
    ("what", "<"),
    ("M", ">"),
    ("N x K", ">"),
    ("form", "<"),
    ("median", ">"),
    ("p20 - p80", ">"),
    ("beside", "<"),
    ("ratio", ">"),
    ("99.9 % sure", ">"),
    ("limit", ">"),
)


def render_table(rows: Sequence[Row]) -> str:
    """Return the table, its head and what the columns mean."""
    cells = [[name for name, _ in _COLUMNS], *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(f"{c:{a}{w}}" for c, w, (_, a) in zip(line, widths, _COLUMNS, strict=True))
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def render_header(row: Row) -> str:
    """Return the machine, the software and the limits of a run, from one of its rows."""
    e = row.environment
    load = "unknown" if e.load_average is None else f"{e.load_average:.2f}"
    versions = ", ".join(f"{k} {v}" for k, v in e.versions.items() if v is not None)
    lines = [
        f"{e.machine}; {e.backend} {e.isa}".rstrip() + f"; {e.threads} threads; load {load}",
        f"{versions}; commit {(e.commit or 'none')[:12]}{' (dirty)' * e.dirty}; {e.utc}",
    ]
    if row.limits is not None:
        known = row.limits.gmac_per_s
        macs = "unknown" if known is None else f"{known:.0f} GMAC/s by {row.limits.unit}"
        lines.append(
            f"limits: memory {row.limits.memory_gb_per_s:.1f} GB/s, "
            f"cache {row.limits.cache_gb_per_s:.1f} GB/s, integer {macs}"
        )
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    s = row.subject
    show = _unit(row.value)
    whole = s.suite in ("model", "train") or (s.suite == "floors" and s.layers > 0)
    rate = row.tokens_per_s if whole else None
    extra = "" if rate is None else f" ({rate:.4g} tok/s)"
    return [
        s.op,
        str(s.m or ""),
        f"{s.n}x{s.k}" if s.n else str(s.k),
        " ".join(part for part in (s.candidate, s.dtype, s.buffers) if part),
        show(row.value.median) + extra,
        "" if row.value.samples == 1 else f"{show(row.value.p20)} - {show(row.value.p80)}",
        s.baseline,
        "" if row.ratio is None else f"{row.ratio.ratio:.2f}x {row.ratio.verdict}",
        "" if row.ratio is None else f"{row.ratio.low:.2f} - {row.ratio.high:.2f}",
        "" if row.reached is None else f"{row.reached.fraction:.0%} {row.reached.limit}",
    ]


def _unit(value: Quantity) -> Callable[[float], str]:
    """Return how to show numbers of the size of ``value``."""
    if value.unit == "bytes":
        return lambda v: f"{v / 2**20:,.1f} MiB"
    if value.median < 1e3:
        return lambda v: f"{v:.1f} us"
    if value.median < 1e6:
        return lambda v: f"{v / 1e3:.2f} ms"
    return lambda v: f"{v / 1e6:.2f} s"
