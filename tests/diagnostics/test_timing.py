"""A timer measures what it says, reports on errors too, and refuses what it cannot time."""

import logging
import mmap
import time

import pytest
import torch

from bitnet_torch.diagnostics import time_operation
from bitnet_torch.diagnostics.log import MEMORY
from bitnet_torch.errors import ConfigurationError, DeviceError

LOGGER = "bitnet_torch.diagnostics.timing"


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by one that the test moves, in milliseconds."""

    class Clock:
        now = 0

        def advance(self, ms):
            self.now += round(ms * 1e6)

    made = Clock()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: made.now)
    return made


def test_a_slow_operation_is_a_warning_that_names_time_and_threshold(clock, caplog):
    with time_operation("pack", threshold_ms=10) as timed:
        clock.advance(12.5)
    assert timed.elapsed_ms == 12.5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "[PERF] pack took 12.500 ms (threshold 10 ms)"


def test_an_operation_at_the_threshold_is_not_slow(clock, caplog):
    with caplog.at_level(logging.DEBUG, LOGGER), time_operation("pack"):
        clock.advance(10)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_an_error_is_reported_with_the_time_and_passes_through(clock, caplog):
    timer = time_operation("pack")

    def fail():
        clock.advance(20)
        raise KeyError("x")

    with pytest.raises(KeyError), timer:
        fail()
    assert timer.elapsed_ms == 20
    assert caplog.messages == ["[PERF] pack failed (KeyError) after 20.000 ms (threshold 10 ms)"]


def test_one_timer_may_be_entered_inside_itself(clock, caplog):
    timer = time_operation("outer", threshold_ms=0)
    with timer:
        clock.advance(1)
        with timer:
            clock.advance(2)
        assert timer.elapsed_ms == 2
        clock.advance(4)
    assert timer.elapsed_ms == 7
    assert len(caplog.records) == 2


def test_every_call_of_a_decorated_function_is_timed(clock, caplog):
    @time_operation("fib", threshold_ms=0)
    def fib(n):
        """Docstring."""
        clock.advance(1)
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert fib(3) == 2
    assert fib.__doc__ == "Docstring."
    assert caplog.messages.count("[PERF] fib took 1.000 ms (threshold 0 ms)") == 3
    assert caplog.messages[-1] == "[PERF] fib took 5.000 ms (threshold 0 ms)"


def test_generators_and_coroutines_are_refused_as_decorated_functions():
    def generator():
        yield

    async def coroutine():
        pass

    async def asynchronous_generator():
        yield

    for function in (generator, coroutine, asynchronous_generator):
        with pytest.raises(ConfigurationError, match="returns before its work begins"):
            time_operation("stream")(function)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
@pytest.mark.parametrize("argument", ["threshold_ms", "profile_above_ms"])
def test_a_threshold_that_is_no_duration_is_refused(argument, value):
    with pytest.raises(ConfigurationError, match=argument):
        time_operation("pack", **{argument: value})


def test_a_device_that_is_absent_is_refused_before_the_work():
    with pytest.raises(DeviceError, match="cannot time work on xpu"):
        time_operation("pack", device="xpu")


def test_the_timer_waits_for_the_device_before_and_after(clock, caplog, monkeypatch):
    waits = []
    present = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: present)
    monkeypatch.setattr(
        torch.accelerator,
        "synchronize",
        lambda d: (waits.append((str(d), clock.now)), clock.advance(5)),
    )
    with time_operation("pack", device="cuda:0") as timed:
        clock.advance(1)
    assert waits == [("cuda:0", 0), ("cuda:0", 6_000_000)]
    assert timed.elapsed_ms == 6


def test_a_device_that_fails_while_it_is_waited_for_leaves_no_block_open(clock, monkeypatch):
    timer = time_operation("pack")
    with pytest.raises(RuntimeError, match="device lost"), timer:
        monkeypatch.setattr(
            timer, "_wait", lambda: (_ for _ in ()).throw(RuntimeError("device lost"))
        )
    assert timer.elapsed_ms == 0
    assert timer._running == []


def test_an_operation_above_the_limit_gets_a_profile_of_its_operators(caplog):
    a = torch.ones(8, 8)
    with time_operation("product", threshold_ms=1e9, profile_above_ms=0) as timed:
        a @ a
    assert "aten::mm" in timed.profile
    assert any(m.startswith("[PERF] profile of product:") for m in caplog.messages)


def test_an_operation_below_the_limit_gets_none(caplog):
    with time_operation("product", threshold_ms=1e9, profile_above_ms=1e9) as timed:
        torch.ones(2) + 1
    assert timed.profile is None
    assert not caplog.records


def test_a_profile_inside_another_is_left_out_and_says_so(caplog):
    with (
        caplog.at_level(logging.INFO, LOGGER),
        time_operation("outer", threshold_ms=1e9, profile_above_ms=0) as outer,
        time_operation("inner", threshold_ms=1e9, profile_above_ms=0) as inner,
    ):
        torch.ones(2) + 1
    assert inner.profile is None
    assert "aten::add" in outer.profile
    assert "inner runs inside another profile and gets none of its own" in caplog.messages


def test_memory_before_and_after_is_logged_when_asked(caplog):
    with caplog.at_level(logging.DEBUG, MEMORY), time_operation("fill", threshold_ms=1e9):
        kept = mmap.mmap(-1, 64 << 20)
        for page in range(0, len(kept), mmap.PAGESIZE):
            kept[page] = 1
    (message,) = [r.getMessage() for r in caplog.records if r.name == MEMORY]
    change = int(message.split("fill: ")[1].split(" bytes")[0])
    assert message.startswith("[MEMORY] fill: ")
    # Fresh pages that are written to are resident, which those of an allocator may already be.
    # Half: what others of this process give back meanwhile counts as well.
    assert change >= len(kept) // 2
