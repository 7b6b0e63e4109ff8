"""Timing on a GPU, with a device that is none: what is recorded, repeated and divided."""

import pytest

from bitnet_torch.bench.buffers import copies_for
from bitnet_torch.bench.device_timing import MOST_CALLS, DeviceSampler


class Device:
    """Counts calls; a call takes a microsecond, and starting it from the host nine more."""

    def __init__(self, refuses=""):
        self.calls, self.now, self.replaying, self.refuses = [], 0.0, False, refuses

    def call(self, buffer):
        self.calls.append(buffer)
        self.now += 1e-6 if self.replaying else 1e-5

    def record(self, work):
        if self.refuses:
            raise RuntimeError(self.refuses)

        def replay():
            self.replaying = True
            work()
            self.replaying = False

        return replay

    def seconds(self, work):
        before = self.now
        work()
        return self.now - before


def sampler(device, buffers, seconds):
    calls = [lambda b=b: device.call(b) for b in range(buffers)]
    return DeviceSampler(calls, seconds, device)


def test_a_graph_goes_round_the_buffers_and_is_as_long_as_a_sample():
    device = Device()
    found = sampler(device, 3, 1e-4)
    device.calls.clear()
    assert found.sample() == pytest.approx(1e-6)
    # 3, 6, 12, 24, 48: the first that fills half of 100 microseconds, give or take.
    assert found.count == len(device.calls) == 96
    assert device.calls[:7] == [0, 1, 2, 0, 1, 2, 0]
    assert found.how == "events round a graph of 96 calls"


def test_what_cannot_be_recorded_is_started_call_by_call_and_says_why():
    device = Device("not permitted when capturing\nmore")
    found = sampler(device, 2, 1e-4)
    assert found.sample() == pytest.approx(1e-5)
    assert (
        found.how == "events round 8 calls, which cannot be recorded: not permitted when capturing"
    )


def test_a_graph_has_a_largest_number_of_calls():
    assert sampler(Device(), 1, 10.0).count == MOST_CALLS


def test_the_cache_of_another_device_may_be_told():
    assert copies_for(1 << 20, "cold", 40 << 20) == 80
    assert copies_for(1 << 20, "warm", 40 << 20) == 1
