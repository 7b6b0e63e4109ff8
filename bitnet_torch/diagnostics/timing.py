"""How long an operation takes, on a device that works behind the caller's back.

A GPU call returns before its work is done. The timer waits for the device before it starts
and before it stops, so it counts this operation's work and no other's. What is slower than a
threshold is logged as a warning that begins with ``[PERF]``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bitnet_torch.diagnostics.log import MEMORY
from bitnet_torch.errors import ConfigurationError, DeviceError

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)
_memory_logger = logging.getLogger(MEMORY)
_PROFILE_ROWS = 10
# The kinds of functions whose call only makes an object that does the work later.
_LAZY = (
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
)


class time_operation:
    """Time a block, or every call of a function, and warn if it is slow.

    Blocks may nest, also of one and the same timer. An exception passes through after it has
    been timed.

    Example::

        with time_operation("prefill", device=x.device) as timed:
            logits = model(x)
        print(timed.elapsed_ms)


        @time_operation("tokenize", threshold_ms=50)
        def tokenize(text): ...

    Args:
        name: What the log calls it.
        device: Where the work runs; the timer waits for it. None or ``"cpu"`` waits for nothing.
        threshold_ms: Above this many milliseconds the log gets a warning.
        profile_above_ms: If given, the work runs under ``torch.profiler``, which slows it, and
            above this many milliseconds its costliest operators are logged as well.

    Attributes:
        elapsed_ms: Milliseconds of the last block that has ended; None before.
        profile: Table of its costliest operators; None if it was not above the limit.

    Raises:
        ConfigurationError: A threshold is negative or NaN, or a generator, coroutine or
            asynchronous generator function is decorated: its call returns before its work begins.
        DeviceError: The device is not present.
    """

    def __init__(
        self,
        name: str,
        device: torch.device | str | None = None,
        threshold_ms: float = 10.0,
        profile_above_ms: float | None = None,
    ) -> None:
        for argument, value in (
            ("threshold_ms", threshold_ms),
            ("profile_above_ms", profile_above_ms),
        ):
            if value is not None and not value >= 0:
                raise ConfigurationError(f"{argument} must be at least 0 ms, got {value!r}")
        self.name = name
        self.threshold_ms = threshold_ms
        self.profile_above_ms = profile_above_ms
        self.elapsed_ms: float | None = None
        self.profile: str | None = None
        self._device = device
        self._wait = _waiting_for(device)
        self._running: list[tuple[int, Any, int | None]] = []

    def __enter__(self) -> time_operation:
        memory = _in_use(self._device) if _memory_logger.isEnabledFor(logging.DEBUG) else None
        self._wait()
        profiler = self._start_profiler()
        self._running.append((time.perf_counter_ns(), profiler, memory))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        start, profiler, memory = self._running.pop()
        try:
            # After an error the device may be lost, and waiting for it would hide the error.
            if error is None:
                self._wait()
        finally:
            self.elapsed_ms = (time.perf_counter_ns() - start) / 1e6
            self._report(kind)
            self.profile = self._stop_profiler(profiler)
        if memory is not None:
            now = _in_use(self._device)
            _memory_logger.debug("[MEMORY] %s: %+d bytes, now %d", self.name, now - memory, now)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return ``function`` with every call timed, each by a timer of its own."""
        if any(is_lazy(function) for is_lazy in _LAZY):
            raise ConfigurationError(
                f"{self.name}: a call of {function.__qualname__} returns before its work begins; "
                "put `with time_operation(...)` around the work"
            )

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            with time_operation(self.name, self._device, self.threshold_ms, self.profile_above_ms):
                return function(*args, **kwargs)

        return timed

    def _report(self, failure: type[BaseException] | None) -> None:
        elapsed, limit = self.elapsed_ms or 0.0, self.threshold_ms
        took = "took" if failure is None else f"failed ({failure.__name__}) after"
        level = logging.WARNING if elapsed > limit else logging.DEBUG
        logger.log(level, "[PERF] %s %s %.3f ms (threshold %g ms)", self.name, took, elapsed, limit)

    def _start_profiler(self) -> Any:
        if self.profile_above_ms is None:
            return None
        import torch

        # PyTorch has one profiler at a time and no public way to ask for it.
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            logger.info("%s runs inside another profile and gets none of its own", self.name)
            return None
        return torch.profiler.profile().__enter__()

    def _stop_profiler(self, profiler: Any) -> str | None:
        if profiler is None:
            return None
        profiler.__exit__(None, None, None)
        if (self.elapsed_ms or 0.0) <= (self.profile_above_ms or 0.0):
            return None
        costliest = "self_cpu_time_total" if self._wait is _nothing else "self_device_time_total"
        table: str = profiler.key_averages().table(sort_by=costliest, row_limit=_PROFILE_ROWS)
        logger.warning("[PERF] profile of %s:\n%s", self.name, table)
        return table


def _waiting_for(device: torch.device | str | None) -> Callable[[], None]:
    """Return what blocks until ``device`` has done all its work."""
    if device is None:
        return _nothing
    import torch

    wanted = torch.device(device)
    if wanted.type == "cpu":
        return _nothing
    present = torch.accelerator.current_accelerator(check_available=True)
    if present is None or present.type != wanted.type:
        found = "no accelerator" if present is None else present.type
        raise DeviceError(f"cannot time work on {wanted}: this machine has {found}", device=wanted)
    return functools.partial(torch.accelerator.synchronize, wanted)


def _nothing() -> None:
    return None


def _in_use(device: torch.device | str | None) -> int:
    # Here and not at the top: who only times need not load torch and the memory layer.
    from bitnet_torch.memory.process import bytes_in_use

    return bytes_in_use(device)
