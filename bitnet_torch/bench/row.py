"""One figure with everything that is needed to believe it, and its form as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from bitnet_torch.bench.environment import Environment
from bitnet_torch.bench.limits import Limits
from bitnet_torch.bench.pairs import PairedRatio
from bitnet_torch.errors import ConfigurationError

R = TypeVar("R")


@dataclass(frozen=True)
class Subject:
    """What was measured. Two rows of the same subject can be compared.

    Attributes:
        suite: ``"ops"``, ``"model"``, ``"floors"``, ``"train"`` or ``"memory"``.
        op: The op, or what the program did.
        candidate: Who computed it: a backend, or a form of the model.
        baseline: Beside what; empty if alone.
        m: Tokens.
        k: Input features; hidden size of a model.
        n: Output features, or keys of a cache; 0 where it means nothing.
        dtype: Of the activations.
        buffers: ``"cold"`` or ``"warm"``, see :mod:`bitnet_torch.bench.buffers`.
        layers: Decoder layers, for a model.
    """

    suite: str
    op: str
    candidate: str
    baseline: str
    m: int
    k: int
    n: int
    dtype: str
    buffers: str
    layers: int = 0


@dataclass(frozen=True)
class Quantity:
    """A measured series.

    Attributes:
        unit: ``"us"`` for microseconds of a call, ``"bytes"``.
        median: The figure.
        p20: A fifth of the samples were below.
        p80: A fifth were above.
        samples: How many there were.
    """

    unit: str
    median: float
    p20: float
    p80: float
    samples: int


@dataclass(frozen=True)
class Reached:
    """How near the figure is to the machine's limit.

    Attributes:
        limit: ``"memory"``, ``"cache"`` or ``"integer"`` for times, ``"file"`` or
            ``"held"`` (by the process: weights, heads, keys and values) for bytes.
        least: The figure that the limit allows, in the row's unit.
        fraction: ``least`` by the median; 1 is the limit.
    """

    limit: str
    least: float
    fraction: float


@dataclass(frozen=True)
class Row:
    """A figure.

    Attributes:
        subject: What was measured.
        value: The figure.
        verified: What was compared before the clock was started.
        environment: Machine, software and moment.
        nbytes: Bytes that a call must read and write.
        macs: Multiply-accumulates of a call.
        baseline: The figure of the baseline.
        baseline_verified: What was compared of the baseline.
        ratio: Baseline by candidate, by pairs.
        reached: None where no limit is known.
        limits: The limits measured in the same run.
        timed: How both were timed, in words; empty for the host's clock round calls.
    """

    subject: Subject
    value: Quantity
    verified: str
    environment: Environment
    nbytes: int = 0
    macs: int = 0
    baseline: Quantity | None = None
    baseline_verified: str = ""
    ratio: PairedRatio | None = None
    reached: Reached | None = None
    limits: Limits | None = None
    timed: str = ""

    @property
    def gb_per_s(self) -> float | None:
        """Achieved 10^9 bytes per second; None if the row is no time."""
        return self.nbytes / self.value.median * 1e-3 if self.value.unit == "us" else None

    @property
    def gmac_per_s(self) -> float | None:
        """Achieved 10^9 multiply-accumulates per second; None if the row is no time."""
        return self.macs / self.value.median * 1e-3 if self.value.unit == "us" else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second; None if the row is no time."""
        return self.subject.m / self.value.median * 1e6 if self.value.unit == "us" else None

    def to_json(self) -> str:
        """Return one line; ``from_json`` of it is equal to this row."""
        return json.dumps(asdict(self), allow_nan=False)


def row_from_json(line: str) -> Row:
    """Read one line.

    Raises:
        ConfigurationError: It is no row: not JSON, or a key is unknown or missing.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"not a line of JSON: {error}") from error
    return _build(Row, values, "row")


def _build(kind: type[R], values: Any, where: str) -> R:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where} must be an object, got {values!r}")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ConfigurationError(
            f"unknown key {unknown[0]!r} in {where}; known are {sorted(known)}"
        )
    hints = get_type_hints(kind)
    try:
        return kind(**{k: _restore(hints[k], v, f"{where}.{k}") for k, v in values.items()})
    except TypeError as error:
        raise ConfigurationError(f"{where} is incomplete: {error}") from error


def _restore(hint: Any, value: Any, where: str) -> Any:
    """Turn JSON's objects and lists back into the dataclasses and tuples of a type hint."""
    if value is None:
        return None
    parts = [p for p in get_args(hint) if p is not type(None)]
    for kind in (hint, *parts):
        if is_dataclass(kind) and isinstance(kind, type) and not isinstance(value, list):
            return _build(kind, value, where)
    if isinstance(value, list):
        return tuple(_restore(parts[0], item, where) for item in value)
    return value
