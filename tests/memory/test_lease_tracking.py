"""The lease side of the tracker: the properties P1 to P12 that the original promised."""

import gc
import itertools
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory import (
    HybridMemoryPool,
    MemoryPoolConfig,
    PressureLevel,
    PressureThresholds,
    TrackingConfig,
    Usage,
)
from bitnet_torch.memory.blocks import Block

PRESETS = ("minimal", "standard", "detailed", "debug", "production")


def tracked(name="standard", **changes):
    config = getattr(TrackingConfig, name)()
    config = TrackingConfig(**{**vars(config), **changes})
    return HybridMemoryPool(MemoryPoolConfig(tracking=config, probe=half_full))


def half_full(device):
    return Usage(device, 1, 2, "test")


def test_p1_the_tracker_that_one_gets_is_the_one_that_is_fed():
    pool = tracked()
    tracker = pool.get_memory_tracker()
    first, second = pool.allocate(1024, alignment=16), pool.allocate(2048, alignment=32)
    metrics = tracker.metrics()
    assert metrics.active_allocations == 2
    assert metrics.current_bytes == 3072
    assert metrics.device_bytes == {"cpu": 3072}
    assert metrics.pressure == PressureLevel.NONE
    assert pool.get_stats().pool_allocated == metrics.current_bytes
    first.release()
    second.release()
    assert tracker.metrics().active_allocations == 0
    assert tracker.metrics().peak_bytes == 3072


@pytest.mark.parametrize("name", PRESETS)
def test_p2_a_fresh_tracker_of_each_preset_has_seen_nothing(name):
    metrics = tracked(name).get_memory_tracker().metrics()
    assert (metrics.level, metrics.active_allocations, metrics.current_bytes) == ("stats", 0, 0)
    assert metrics.pressure in (None, PressureLevel.NONE)
    assert metrics.operations == 0


def test_p4_one_allocation_and_one_free_are_one_of_each():
    pool = tracked()
    pool.allocate(100).release()
    timeline = pool.get_memory_tracker().lease_timeline()
    assert timeline.counts() == {"allocate": 1, "free": 1}
    born, ended = timeline.moments
    assert ended.time_ns > born.time_ns
    assert pool.get_memory_tracker().metrics().operations == 2


def test_p5_the_timeline_can_be_asked_by_kind_size_tag_and_time():
    pool = tracked()
    small, large = pool.allocate(100, tag="small"), pool.allocate(9000, tag="large")
    small.release()
    timeline = pool.get_memory_tracker().lease_timeline()
    assert len(timeline.query(kind="allocate")) == 2
    assert len(timeline.query(kind="free")) == 1
    assert [m.lease.tag for m in timeline.query(min_bytes=101)] == ["large"]
    assert [m.lease.nbytes for m in timeline.query(tag="small")] == [100, 100]
    assert timeline.query(max_bytes=10) == timeline.query(device="cuda:0") == []
    assert timeline.query(since_ns=timeline.moments[-1].time_ns) == timeline.moments[-1:]
    assert timeline.query(limit=1) == timeline.moments[-1:]
    with pytest.raises(ConfigurationError, match="kind must be one of allocate, free"):
        timeline.query("Allocation")
    large.release()


def test_the_timeline_keeps_the_last_leases_and_forgets_after_a_reset():
    pool = tracked(max_timeline_entries=100)
    for n in range(250):
        pool.allocate(n + 1).release()
    live = pool.allocate(7, tag="live")
    tracker = pool.get_memory_tracker()
    assert [row.nbytes for row in pool.lease_rows()][:-1] == list(range(151, 251))
    tracker.reset()
    assert [row.tag for row in pool.lease_rows()] == ["live"]
    assert tracker.metrics().peak_bytes == 7
    live.release()


def test_p6_equal_sizes_are_a_pattern_with_an_insight():
    pool = tracked("detailed")
    for _ in range(10):
        pool.allocate(4096, tag="scratch").release()
    patterns = pool.get_memory_tracker().metrics().patterns
    size = next(p for p in patterns if p.kind == "size")
    assert (size.count, size.nbytes) == (10, 40960)
    assert size.insight == "10 leases of 4,096 bytes"
    assert any(p.kind == "short-lived" and p.advice for p in patterns)


def test_p7_a_lease_older_than_the_limit_is_a_suspect():
    pool = tracked(leak_age_s=0.01)
    lease = pool.allocate(1 << 20, tag="forgotten")
    assert not pool.get_memory_tracker().metrics().suspects
    time.sleep(0.02)
    (suspect,) = pool.get_memory_tracker().metrics().suspects
    assert (suspect.nbytes, suspect.tag) == (1 << 20, "forgotten")
    lease.release()
    assert not pool.get_memory_tracker().metrics().suspects


class CountingLock:
    """Stands for a lock and counts how often it is taken."""

    def __init__(self, lock):
        self.lock, self.taken = lock, 0

    def __enter__(self):
        self.taken += 1
        return self.lock.__enter__()

    def __exit__(self, *args):
        return self.lock.__exit__(*args)


def test_p8_tracking_takes_no_lock_and_keeps_no_object_but_times(monkeypatch):
    taken = {}
    for name, pool in (("off", HybridMemoryPool()), ("standard", tracked())):
        pool.allocate(1000).release()
        pool._lock = CountingLock(pool._lock)
        pool.allocate(1000).release()
        taken[name] = pool._lock.taken
    assert taken == {"off": 2, "standard": 2}

    def refuse():
        raise AssertionError("a stack was walked")

    monkeypatch.setattr("bitnet_torch.memory.lease_table.caller_site", refuse)
    tracked().allocate(10).release()


def calls_of_a_pair(pool):
    """Return how often each function was called for a lease that is taken and released."""
    calls = Counter()

    def note(frame, event, argument):
        if event == "call":
            calls[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            calls[argument.__name__] += 1

    lease = pool.allocate(1000)
    lease.release()
    sys.setprofile(note)
    try:
        pool.allocate(1000).release()
    finally:
        sys.setprofile(None)
    return calls


def test_p8_tracking_adds_two_calls_two_looks_at_the_clock_and_no_object():
    pool = tracked(max_timeline_entries=64)
    added = calls_of_a_pair(pool) - calls_of_a_pair(HybridMemoryPool())
    assert added == {"LeaseTable.begin": 1, "LeaseTable.end": 1, "perf_counter_ns": 2, "len": 1}
    for _ in range(64):
        pool.allocate(1000).release()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(500):
            pool.allocate(1000).release()
        after = len(gc.get_objects())
    finally:
        gc.enable()
    # Numbers are not among these; an object for each event would be 1000 of them.
    assert after - before < 10


def test_p8_the_share_of_time_is_the_cost_of_a_row_over_the_span_of_all(monkeypatch):
    ticks = itertools.count(0, 1000)
    last = [0]

    def clock():
        last[0] = next(ticks)
        return last[0]

    monkeypatch.setattr("bitnet_torch.memory.lease_table._now", clock)
    stand_in = SimpleNamespace(perf_counter_ns=clock)
    monkeypatch.setattr("bitnet_torch.memory.metrics.time", stand_in)
    pool = tracked()
    for n in range(100):
        pool.allocate(1024 + n).release()
    born = min(row.born_ns for row in pool.lease_rows())
    fraction = pool.get_memory_tracker().metrics().overhead_fraction
    # A trial row looks at the clock twice, so it costs 2 ticks; a last look ends the 200 trials.
    assert fraction == pytest.approx(100 * (2 + 1 / 200) * 1000 / (last[0] - born))


@pytest.mark.parametrize("name", ["standard", "detailed"])
def test_p9_a_live_lease_costs_less_than_151_bytes_of_tracking(name):
    pool = tracked(name)
    leases = [pool.allocate(1024 + 10 * n) for n in range(100)]
    overhead = pool.get_memory_tracker().metrics().overhead_bytes
    assert 0 < overhead < 151 * len(leases)


def test_p10_after_four_threads_exactly_52_are_left():
    pool, left, lock = tracked(), [], threading.Lock()

    def work():
        leases = [pool.allocate(1000 + n) for n in range(25)]
        for lease in leases[:12]:
            lease.release()
        with lock:
            left.extend(leases[12:])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics = pool.get_memory_tracker().metrics()
    assert metrics.active_allocations == len(left) == 52
    assert metrics.current_bytes == sum(lease.nbytes for lease in left)
    assert sum(row.ended_ns is None for row in pool.lease_rows()) == 52
    for lease in left:
        lease.release()
    assert pool.get_memory_tracker().metrics().active_allocations == 0
    pool.verify()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrackingConfig(sampling_rate=1.5), "sampling_rate must be within 0.0 and 1.0"),
        (lambda: TrackingConfig(sampling_rate=-0.1), "got -0.1"),
        (lambda: TrackingConfig(max_timeline_entries=2_000_000), "max_timeline_entries"),
        (lambda: TrackingConfig(retention_s=1e9), "retention_s"),
        (lambda: TrackingConfig(level="track"), "'track'"),
        (lambda: PressureThresholds(high=0.5), "ascend within .0, 1., got 0.7, 0.8, 0.5, 0.95"),
        (lambda: PressureThresholds(hysteresis=0.9), "hysteresis"),
        (lambda: PressureThresholds(cooldown_s=301), "cooldown_s"),
    ],
)
def test_p11_settings_out_of_range_are_refused(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_p11_settings_in_range_are_taken():
    assert TrackingConfig(sampling_rate=0.5).sampling_rate == 0.5
    for name in ("production", "conservative", "aggressive"):
        assert getattr(PressureThresholds, name)().steps


def test_p12_many_leases_of_two_kinds():
    pool = tracked("detailed")
    small = [pool.allocate(256) for _ in range(20)]
    large = [pool.allocate(1 << 20, alignment=4096) for _ in range(5)]
    for lease in small[:10]:
        lease.release()
    metrics = pool.get_memory_tracker().metrics()
    assert metrics.active_allocations == 15
    assert metrics.current_bytes == 10 * 256 + 5 * (1 << 20)
    assert metrics.patterns
    assert metrics.operations == 35
    assert metrics.overhead_bytes > 0
    assert large


def test_p13_sampling_thins_the_rows_and_never_the_counts():
    pool = tracked(sampling_rate=0.25)
    leases = [pool.allocate(100) for _ in range(400)]
    rows = len(pool.lease_rows())
    # Fibonacci hashing spreads a run of numbers with a discrepancy below 3 for each share.
    assert abs(rows - 100) <= 3
    assert pool.get_memory_tracker().metrics().active_allocations == 400
    for lease in leases:
        lease.release()
    assert pool.get_memory_tracker().metrics().current_bytes == 0
    pool.verify()


def test_p14_leases_that_end_in_another_order_keep_their_own_lifetimes():
    pool = tracked()
    leases = {tag: pool.allocate(100, tag=tag) for tag in "abc"}
    for tag in "bca":
        leases[tag].release()
    rows = {row.tag: row for row in pool.lease_rows()}
    assert rows["a"].born_ns < rows["b"].born_ns < rows["c"].born_ns
    assert rows["b"].ended_ns < rows["c"].ended_ns < rows["a"].ended_ns


def test_debug_tracking_names_the_line_that_took_a_lease():
    pool = tracked("debug")
    lease = pool.allocate(100)
    (row,) = pool.lease_rows()
    assert row.site.file == __file__
    assert row.site.function == "test_debug_tracking_names_the_line_that_took_a_lease"
    lease.release()
    assert pool.lease_rows()[0].site == row.site


def test_p25_a_tracker_that_is_off_has_no_table_and_costs_nothing():
    pool = HybridMemoryPool()
    tracker = pool.get_memory_tracker()
    lease = pool.allocate(100)
    assert (tracker.level, tracker.table, tracker.rows) == ("off", None, None)
    assert pool.lease_rows() == []
    assert tracker.metrics().active_allocations == 1
    assert tracker.metrics().overhead_bytes == 0
    with tracker.start("stats"):
        with pool.allocate(50):
            assert [row.nbytes for row in pool.lease_rows()] == [50]
        lease.release()
    assert tracker.level == "off"
    assert tracker.table is None
    pool.verify()


def test_p26_a_tracker_that_cannot_be_made_raises(monkeypatch):
    def broken(*args):
        raise RuntimeError("no table")

    monkeypatch.setattr("bitnet_torch.memory.recorder.LeaseTable", broken)
    with pytest.raises(RuntimeError, match="no table"):
        tracked()


def test_a_block_that_is_not_remembered_says_so():
    import torch

    assert Block(("cpu", 1, 0, False), torch.empty(1)).born_ns == 0
