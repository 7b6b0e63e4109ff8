"""Time calls on a GPU: by its own events, cold, and without the way there.

A kernel of a few microseconds takes less time than Python takes to start it, so calls are recorded
as one graph, which goes round the buffers, and what is timed is its replay. What cannot be recorded
(its host part looks at results) is started call by call between the events, and the sample says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from bitnet_torch.bench.verify import Call

# Calls of a graph at most: its nodes are memory, too.
MOST_CALLS = 4096


class Device(Protocol):
    """What is asked of a GPU. Tests put something else in its place."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays ``work``, which is recorded and not run.

        Raises:
            RuntimeError: It does something that cannot be recorded.
        """
        ...

    def seconds(self, work: Callable[[], None]) -> float:
        """Run ``work`` between two events and return the time between these."""
        ...


class Cuda:
    """The current CUDA or HIP device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record a graph; see :class:`Device`."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def seconds(self, work: Callable[[], None]) -> float:
        """Time by events; see :class:`Device`."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3


class DeviceSampler:
    """Takes samples of the calls of a contender, going round its buffers.

    Args:
        calls: One for each buffer of its pool; each has been called before, to be compiled.
        seconds: Length of a sample.
        device: Where they run.

    Attributes:
        count: Calls of a sample.
        how: How they are started, in words.
    """

    def __init__(self, calls: Sequence[Call], seconds: float, device: Device) -> None:
        self._calls, self._device = calls, device
        self.count, self.how = len(calls), ""
        self._work = self._started(self.count)
        # The first one warms up.
        self.sample()
        while self.sample() * self.count < seconds / 2 and self.count * 2 <= MOST_CALLS:
            self.count *= 2
            self._work = self._started(self.count)
            self.sample()

    def _started(self, count: int) -> Callable[[], None]:
        def work() -> None:
            for i in range(count):
                self._calls[i % len(self._calls)]()

        try:
            replay = self._device.record(work)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            self.how = f"events round {count} calls, which cannot be recorded: {said:.100}"
            return work
        self.how = f"events round a graph of {count} calls"
        return replay

    def sample(self) -> float:
        """Return the seconds of one call, on average over a sample."""
        return self._device.seconds(self._work) / self.count
