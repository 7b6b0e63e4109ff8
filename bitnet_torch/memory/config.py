"""Settings of the pool, of tracking and of pressure, checked when they are made."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory.probe import Usage, probe

LEVELS = ("off", "stats", "track", "full")
_MAX_ENTRIES = 1_000_000
_MAX_RETENTION_S = 24 * 3600.0
_MAX_COOLDOWN_S = 300.0


@dataclass(frozen=True)
class PressureThresholds:
    """Fractions of a device's limit at which each level of pressure begins.

    Attributes:
        low: First level.
        medium: Second.
        high: Third.
        critical: Last.
        hysteresis: A level ends only when usage is this far below its threshold.
        cooldown_s: A level that has been announced is not announced again within these seconds.

    Raises:
        ConfigurationError: Not ascending within (0, 1], or a negative or excessive rest.
    """

    low: float = 0.7
    medium: float = 0.8
    high: float = 0.9
    critical: float = 0.95
    hysteresis: float = 0.03
    cooldown_s: float = 30.0

    def __post_init__(self) -> None:
        steps = self.steps
        ascending = all(a < b for a, b in itertools.pairwise(steps))
        if not (ascending and steps[0] > 0.0 and steps[-1] <= 1.0):
            raise ConfigurationError(
                f"pressure thresholds must ascend within (0, 1], got {', '.join(map(str, steps))}"
            )
        if not 0.0 <= self.hysteresis < steps[0]:
            raise ConfigurationError(
                f"hysteresis must be at least 0 and below the first threshold {steps[0]}, "
                f"got {self.hysteresis}"
            )
        if not 0.0 <= self.cooldown_s <= _MAX_COOLDOWN_S:
            raise ConfigurationError(
                f"cooldown_s must be within 0 and {_MAX_COOLDOWN_S}, got {self.cooldown_s}"
            )

    @property
    def steps(self) -> tuple[float, float, float, float]:
        """The four thresholds, lowest first."""
        return (self.low, self.medium, self.high, self.critical)

    @classmethod
    def production(cls) -> PressureThresholds:
        """Early levels and a long rest."""
        return cls(0.6, 0.75, 0.85, 0.92, cooldown_s=60.0)

    @classmethod
    def conservative(cls) -> PressureThresholds:
        """The earliest levels."""
        return cls(0.5, 0.65, 0.8, 0.9, cooldown_s=15.0)

    @classmethod
    def aggressive(cls) -> PressureThresholds:
        """Use nearly all there is before anything is said."""
        return cls(0.8, 0.9, 0.95, 0.98, cooldown_s=45.0)


@dataclass(frozen=True)
class TrackingConfig:
    """What the tracker of a pool records about leases, from the pool's first moment.

    Attributes:
        level: Where the tracker starts; see :class:`~bitnet_torch.memory.MemoryTracker`.
        timeline: Keep leases that have ended, up to ``max_timeline_entries``.
        patterns: Look for patterns when metrics are asked for.
        leaks: Count long-lived leases when metrics are asked for.
        pressure: Read the device's pressure when metrics are asked for.
        stacks: Remember the line that took each lease.
        sampling_rate: Share of leases with a row of their own. Counters always count all.
        max_timeline_entries: Rows kept, live ones excepted.
        retention_s: Older rows are not shown.
        leak_age_s: A lease that lives longer is a suspect.

    Raises:
        ConfigurationError: A setting is out of its range.
    """

    level: str = "stats"
    timeline: bool = True
    patterns: bool = False
    leaks: bool = True
    pressure: bool = True
    stacks: bool = False
    sampling_rate: float = 1.0
    max_timeline_entries: int = 10_000
    retention_s: float = 3600.0
    leak_age_s: float = 300.0

    def __post_init__(self) -> None:
        if self.level not in ("off", "stats"):
            raise ConfigurationError(
                f"a pool's tracker begins at level 'off' or 'stats', got {self.level!r}; "
                "the others are for tracker.start()"
            )
        for name, least, most in (
            ("sampling_rate", 0.0, 1.0),
            ("max_timeline_entries", 0, _MAX_ENTRIES),
            ("retention_s", 0.0, _MAX_RETENTION_S),
            ("leak_age_s", 0.0, float("inf")),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigurationError(f"{name} must be within {least} and {most}, got {value}")

    @classmethod
    def minimal(cls) -> TrackingConfig:
        """Count everything, remember one lease in ten while it lives."""
        return cls(timeline=False, leaks=False, pressure=False, sampling_rate=0.1)

    @classmethod
    def standard(cls) -> TrackingConfig:
        """Every lease, the last 10 000 that ended, pressure and suspects."""
        return cls()

    @classmethod
    def detailed(cls) -> TrackingConfig:
        """As standard, with patterns and a longer past."""
        return cls(patterns=True, max_timeline_entries=50_000, retention_s=7200.0)

    @classmethod
    def debug(cls) -> TrackingConfig:
        """As detailed, with the line that took each lease."""
        return cls(patterns=True, stacks=True, max_timeline_entries=100_000, retention_s=4 * 3600.0)

    @classmethod
    def production(cls) -> TrackingConfig:
        """One lease in a hundred, no past, pressure and suspects."""
        return cls(timeline=False, sampling_rate=0.01)


@dataclass(frozen=True)
class MemoryPoolConfig:
    """Settings of a pool.

    Attributes:
        device: What ``get_stats()`` speaks of when no device is given.
        soft_limit: Bytes above which cached blocks are given back, on every device; None: never.
        hard_limit: Bytes that leases and cache may never exceed, on every device; None: no limit.
        max_cached: Bytes of released blocks that are kept for reuse on each device; None: the
            smaller of 1 GiB and a tenth of the machine's memory.
        max_pinned: Bytes of pinned host memory that may be out; None: a tenth of the machine's
            memory, which cannot be swapped while it is pinned.
        debug: Poison what is released and check it before reuse.
        tracking: What the tracker records from the start; None: nothing.
        thresholds: Of the pressure monitor.
        probe: Reads how much of a device is used.

    Raises:
        ConfigurationError: A limit is below 0 or the soft one above the hard one.
    """

    device: str = "cpu"
    soft_limit: int | None = None
    hard_limit: int | None = None
    max_cached: int | None = None
    max_pinned: int | None = None
    debug: bool = False
    tracking: TrackingConfig | None = None
    thresholds: PressureThresholds = field(default_factory=PressureThresholds)
    probe: Callable[[str], Usage] = probe

    def __post_init__(self) -> None:
        for name in ("max_cached", "max_pinned"):
            check_not_negative(name, getattr(self, name))
        check_limits(self.soft_limit, self.hard_limit)


def check_limits(soft: int | None, hard: int | None) -> None:
    """Raise ConfigurationError unless both limits can hold."""
    check_not_negative("soft_limit", soft)
    check_not_negative("hard_limit", hard)
    if soft is not None and hard is not None and soft > hard:
        raise ConfigurationError(f"soft_limit {soft} is above hard_limit {hard}")


def check_not_negative(name: str, value: int | None) -> None:
    """Raise ConfigurationError if a number of bytes is below 0."""
    if value is not None and value < 0:
        raise ConfigurationError(f"{name} must be at least 0 bytes, got {value}")
