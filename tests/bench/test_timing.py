"""Verify, then time: in turn, from rotating buffers, with a verdict that noise does not make."""

import time

import pytest
import torch

from bitnet_torch.bench.timing import Contender, Effort, Spread, measure
from bitnet_torch.bench.verify import same_bits, within
from bitnet_torch.errors import BitNetError, ConfigurationError
from tests.bench.simulated import EFFORT, RECORDINGS, Machine

REPEATS = 20
DIFFERENT = ("faster", "slower")


def verdicts(recording, slowdown):
    found = []
    for repeat in range(REPEATS):
        machine = Machine(recording, start=97 * repeat)
        candidate = machine.contender("candidate", slowdown)
        measured = measure(candidate, machine.contender("baseline"), EFFORT, machine.clock)
        found.append(measured.ratio.verdict)
    return found


@pytest.mark.parametrize("recording", [r for r in RECORDINGS if "oversubscribed" not in r])
def test_a_planted_slowdown_of_10_percent_is_seen_20_times_of_20(recording):
    assert verdicts(recording, 1.10) == ["slower"] * REPEATS


@pytest.mark.parametrize("recording", RECORDINGS)
def test_an_unchanged_pair_is_never_called_different_in_20_times(recording):
    assert not any(v in DIFFERENT for v in verdicts(recording, 1.0))


@pytest.mark.parametrize("recording", RECORDINGS)
def test_a_planted_slowdown_is_never_called_a_speedup_however_busy_the_machine(recording):
    assert "faster" not in verdicts(recording, 1.10)


def test_a_wrong_candidate_is_refused_before_the_clock_is_read():
    def forbidden_clock():
        raise AssertionError("the clock was read")

    right = torch.arange(6.0)
    wrong = right.clone()
    wrong[4] = torch.nextafter(wrong[4], torch.tensor(9.0))
    calls = [lambda: right, lambda: wrong]
    candidate = Contender("mine", calls, same_bits("mine", calls, right))
    with pytest.raises(BitNetError, match=r"mine is wrong and is not timed: with buffer 1, elem"):
        measure(candidate, None, EFFORT, forbidden_clock)


def test_a_wrong_baseline_is_refused_too():
    machine = Machine(RECORDINGS[0])
    right = torch.zeros(3)
    calls = [lambda: right + 0.5]
    baseline = Contender("theirs", calls, within("theirs", calls, right, 0.25, "a quarter"))
    with pytest.raises(BitNetError, match=r"theirs is wrong .*within a quarter"):
        measure(machine.contender("mine"), baseline, EFFORT, machine.clock)


def test_calls_go_round_all_buffers():
    machine = Machine(RECORDINGS[0])
    order = []

    def touch(index):
        order.append(index)
        machine.now += 1e-6

    calls = [lambda i=i: touch(i) for i in range(5)]
    measure(Contender("c", calls, lambda: "bits"), None, EFFORT, machine.clock)
    assert order == [i % 5 for i in range(len(order))]
    assert len(order) >= EFFORT.pairs


def test_both_go_first_about_equally_often():
    machine = Machine(RECORDINGS[0])
    ran = []

    def runner(name):
        def call():
            ran.append(name)
            machine.now += 1e-6

        return Contender(name, [call], lambda: "bits")

    measure(runner("a"), runner("b"), EFFORT, machine.clock)
    pairs = ["".join(ran[-2 * EFFORT.pairs :][i : i + 2]) for i in range(0, 2 * EFFORT.pairs, 2)]
    assert set(pairs) == {"ab", "ba"}
    # The coin's seed is fixed; three standard deviations of 200 throws are 21.
    assert abs(pairs.count("ab") - EFFORT.pairs / 2) <= 21


def test_a_short_call_is_repeated_until_a_sample_is_long_enough():
    machine = Machine(RECORDINGS[0])
    sizes = []
    calls_since = [0]

    def call():
        calls_since[0] += 1
        machine.now += 1e-6

    def wait():
        sizes.append(calls_since[0])
        calls_since[0] = 0

    contender = Contender("c", [call], lambda: "bits", wait)
    measured = measure(contender, None, Effort(12, 12, 1e9, 1e-4), machine.clock)
    assert set(sizes[-12:]) == {64}
    # A clock that counts microseconds in float64 is off by an ulp of its reading.
    assert measured.seconds.median == pytest.approx(1e-6, rel=1e-9)


def test_time_ends_the_pairs_but_not_the_least_of_them():
    machine = Machine(RECORDINGS[0])
    slow = machine.contender("slow", slowdown=1e6)
    measured = measure(slow, None, Effort(400, 15, 1.0, 1e-9), machine.clock)
    assert measured.seconds.samples == 15


def test_a_spread_is_the_middle_and_two_fifths():
    assert Spread.of([5, 1, 2, 3, 4, 6]) == Spread(3.5, 2.0, 5.0, 6)


@pytest.mark.parametrize(
    "settings", [(400, 3, 1.0), (10, 12, 1.0), (400, 15, -1.0), (400, 15, float("nan"))]
)
def test_an_effort_that_can_show_nothing_is_refused(settings):
    with pytest.raises(ConfigurationError):
        Effort(*settings)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_real_work_that_is_a_tenth_more_is_seen_and_equal_work_is_not(threads):
    # The clock of this thread: what other programs do on the machine costs it nothing.
    threads(1)
    x = torch.randn(1 << 10)
    effort = Effort(pairs=200, least_pairs=200, seconds=0.0, sample_seconds=1e-4)

    def work(times):
        def call():
            for _ in range(times):
                torch.sort(x)

        return Contender(str(times), [call], lambda: "bits")

    def verdict(candidate, baseline):
        return measure(work(candidate), work(baseline), effort, time.thread_time).ratio.verdict

    planted = [verdict(11, 10) for _ in range(REPEATS)]
    unchanged = [verdict(10, 10) for _ in range(REPEATS)]
    assert planted == ["slower"] * REPEATS
    assert not any(v in DIFFERENT for v in unchanged)
