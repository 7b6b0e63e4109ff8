"""Pressure: how near a device is to its limit, announced when the level changes.

Levels rise at their thresholds and fall only ``hysteresis`` below them, so that a usage that
swings round a threshold is announced once. A level is announced at once unless it has been within
the cooldown; then it is when that is over, if it still holds. The stall information of the kernel
raises a level, too: memory that must be reclaimed page by page is gone, whatever the figure says.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bitnet_torch.memory.config import PressureThresholds
from bitnet_torch.memory.hooks import CallbackError, Unregister, call_contained, new_errors
from bitnet_torch.memory.probe import Usage, probe

# Share of time that something stalls for memory -> the least level; the values at which
# systemd-oomd and Android's daemon begin to act.
_STALLED_HIGH = 0.2
_STALLED_CRITICAL = 0.6
_HISTORY = 1000


class PressureLevel(enum.IntEnum):
    """How near the limit is."""

    NONE = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


@dataclass(frozen=True)
class PressureEvent:
    """A change of level.

    Attributes:
        level: From now on.
        before: What was last announced, in a callback; the level until now, in ``events``.
        usage: What was read.
        time_s: When, on the monitor's clock.
    """

    level: PressureLevel
    before: PressureLevel
    usage: Usage
    time_s: float


class PressureMonitor:
    """Watches one device.

    Args:
        device: Its name.
        thresholds: Where the levels begin.
        interval_s: Seconds between two readings of the thread.
        probe: Reads the device; replace it to drive the monitor in a test.
        clock: Seconds that only grow.
        errors: Where failures of callbacks are kept.

    Attributes:
        level: The level of the last reading.
        events: The last changes of level.
        errors: The last callbacks, or probes, that raised.
    """

    def __init__(
        self,
        device: str = "cpu",
        thresholds: PressureThresholds | None = None,
        *,
        interval_s: float = 0.25,
        probe: Callable[[str], Usage] = probe,
        clock: Callable[[], float] = time.monotonic,
        errors: deque[CallbackError] | None = None,
    ) -> None:
        self.device = device
        self.thresholds = thresholds or PressureThresholds()
        self.level = PressureLevel.NONE
        self.events: deque[PressureEvent] = deque(maxlen=_HISTORY)
        self.errors = new_errors() if errors is None else errors
        self._interval = interval_s
        self._probe = probe
        self._clock = clock
        self._lock = threading.Lock()
        self._callbacks: dict[object, tuple[Callable[[PressureEvent], Any], PressureLevel]] = {}
        self._told = PressureLevel.NONE
        self._announced: dict[PressureLevel, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def has_callbacks(self) -> bool:
        """Whether anybody listens."""
        return bool(self._callbacks)

    def register(
        self,
        callback: Callable[[PressureEvent], Any],
        min_level: PressureLevel = PressureLevel.LOW,
    ) -> Unregister:
        """Call ``callback`` when the level changes from or to ``min_level`` or above."""
        key = object()
        with self._lock:
            self._callbacks[key] = (callback, min_level)

        def unregister() -> None:
            with self._lock:
                self._callbacks.pop(key, None)

        return unregister

    def poll(self) -> PressureLevel:
        """Read the device now, call whom it concerns, and return the level."""
        usage = self._probe(self.device)
        with self._lock:
            level, now = self._level_of(usage), self._clock()
            if level != self.level:
                self.events.append(PressureEvent(level, self.level, usage, now))
            self.level = level
            if level == self._told or not self._is_due(level, now):
                return level
            event = PressureEvent(level, self._told, usage, now)
            self._told = level
            heard = [
                callback
                for callback, least in self._callbacks.values()
                if max(event.level, event.before) >= least
            ]
        for callback in heard:
            call_contained(callback, self.errors, event)
        return level

    def read(self) -> Usage:
        """Read the device without any consequence."""
        return self._probe(self.device)

    def start(self) -> None:
        """Read the device from a thread of its own until :meth:`stop`."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="memory-pressure", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, unless it is the one that calls this."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            call_contained(self.poll, self.errors)

    def _level_of(self, usage: Usage) -> PressureLevel:
        """Return the level after this reading, given the one before."""
        steps, rest = self.thresholds.steps, self.thresholds.hysteresis
        rising = sum(usage.fraction >= step for step in steps)
        falling = sum(usage.fraction >= step - rest for step in steps)
        level = rising if rising > self.level else min(self.level, falling)
        if usage.stalled is not None and usage.stalled >= _STALLED_HIGH:
            critical = usage.stalled >= _STALLED_CRITICAL
            level = max(level, PressureLevel.CRITICAL if critical else PressureLevel.HIGH)
        return PressureLevel(level)

    def _is_due(self, level: PressureLevel, now: float) -> bool:
        """Whether a level may be announced: it is new, or was not within the cooldown."""
        last = self._announced.get(level)
        if last is not None and now - last < self.thresholds.cooldown_s:
            return False
        self._announced[level] = now
        return True
