"""Properties that the original's tests meant and never reached: P16, P17, P21, P23, P24, P27."""

import random
import re
import threading
from pathlib import Path

import pytest
import torch

from bitnet_torch.memory import HybridMemoryPool, MemoryPoolConfig, TrackingConfig, Usage, forking
from bitnet_torch.memory.config import LEVELS
from bitnet_torch.memory.size_class import size_class
from bitnet_torch.memory.tracker import MemoryTracker
from tests.memory.conftest import needs_compiler

PRESETS = ("minimal", "standard", "detailed", "debug", "production")


def tracked(name="standard"):
    config = getattr(TrackingConfig, name)()
    probe = lambda device: Usage(device, 1, 2, "test")  # noqa: E731
    return HybridMemoryPool(MemoryPoolConfig(tracking=config, probe=probe))


@needs_compiler
def test_p16_tracker_pool_and_pytorchs_allocator_count_the_same_bytes():
    pool = tracked()
    tracker = pool.get_memory_tracker()
    sizes = [1, 1000, 4096, 100_000, 3 << 20]
    with tracker.start("track", backend="allocator"):
        start = pool.get_stats().allocated
        with tracker.scope("leases") as scope:
            leases = [pool.allocate(size, tag="p16") for size in sizes]
            counted = scope.current
        blocks = sum(map(size_class, sizes))
        stats, metrics = pool.get_stats(), tracker.metrics()
        assert counted == blocks == stats.pool_reserved == stats.allocated - start
        assert stats.pool_allocated == metrics.current_bytes == sum(sizes)
        assert tracker.account().parts["p16"] == blocks
        addresses = {lease.tensor.untyped_storage().data_ptr() for lease in leases}
        found = [a for a in tracker.snapshot().allocations if a.address in addresses]
        assert sorted(a.nbytes for a in found) == sorted(map(size_class, sizes))
        for lease in leases:
            lease.release()
        assert pool.get_stats().allocated == start
        assert pool.trim() == blocks
        assert pool.get_stats().allocated == start


@pytest.mark.cuda
def test_p16_on_a_gpu_pool_and_pytorchs_allocator_count_the_same_bytes():
    pool = tracked()
    torch.ones(1, device="cuda")
    start = torch.cuda.memory_stats()["requested_bytes.all.current"]
    with pool.allocate(3 << 20, device="cuda"):
        grown = torch.cuda.memory_stats()["requested_bytes.all.current"] - start
        assert grown == pool.get_stats("cuda").pool_reserved == size_class(3 << 20)


def test_p17_nobody_sees_a_pool_without_its_tracker(monkeypatch):
    monkeypatch.setattr(HybridMemoryPool, "_instance", None)
    before, seen, found = set(forking.pools()), [], []
    making, make = threading.Event(), MemoryTracker.__init__

    def slow(self, pool):
        making.set()
        # Everything by which others could see the pool that is being made.
        seen.extend(set(forking.pools()) - before)
        seen.extend(filter(None, [HybridMemoryPool._instance]))
        make(self, pool)

    monkeypatch.setattr(MemoryTracker, "__init__", slow)

    def look():
        pool = HybridMemoryPool.instance()
        found.append((pool, pool.get_memory_tracker(), pool.get_memory_tracker().level))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert making.is_set()
    assert seen == []
    assert len(found) == 8
    assert len({(id(pool), id(tracker), level) for pool, tracker, level in found}) == 1


@pytest.mark.parametrize("level", ["stats", "track"])
def test_p21_a_reset_clears_every_record_and_no_byte_that_is_out(level, backend, training):
    pool = tracked()
    tracker = pool.get_memory_tracker()
    with tracker.start(level, backend=backend), tracker.attach(training.model):
        pool.allocate(9000, tag="gone").release()
        lease = pool.allocate(100, tag="out")
        training.model(training.ids)
        assert (tracker.fullest() is not None) is (level == "track")
        tracker.reset()
        metrics, stats = tracker.metrics(), pool.get_stats()
        assert [row.tag for row in pool.lease_rows()] == ["out"]
        assert tracker.lease_timeline().counts() == {"allocate": 1, "free": 0}
        assert (metrics.active_allocations, metrics.current_bytes) == (1, 100)
        assert metrics.peak_bytes == stats.pool_peak == stats.pool_allocated == 100
        assert tracker.fullest() is None
        if level == "track":
            total = tracker.report().total
            assert total.peak == total.current
            assert all(t.peak == t.current for t in tracker.by_module().values())
        lease.release()
    tracker.detach()
    pool.verify()


@pytest.mark.parametrize("name", PRESETS)
def test_p23_metrics_are_never_missing_whatever_is_recorded(name):
    for pool in (tracked(name), HybridMemoryPool()):
        tracker = pool.get_memory_tracker()
        with pool.allocate(1000):
            assert tracker.metrics().active_allocations == 1
            assert tracker.metrics().current_bytes == pool.get_stats().pool_allocated == 1000
        assert tracker.metrics().operations == 2
        assert tracker.level in LEVELS


def test_p23_every_property_has_a_test_of_its_name():
    named = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        named |= {int(n) for n in re.findall(r"^def test_p(\d+)_", file.read_text(), re.MULTILINE)}
    assert named == set(range(1, 28))


def test_p24_the_joint_peak_is_what_was_out_at_one_time():
    pool = tracked()
    pool.allocate(1000).release()
    elsewhere = pool.allocate(2500, device="meta")
    assert pool.get_memory_tracker().metrics().peak_bytes == 2500
    with pool.allocate(300):
        assert pool.get_memory_tracker().metrics().peak_bytes == 2800
    elsewhere.release()
    assert pool.get_stats().pool_peak == 1000
    assert pool.get_memory_tracker().metrics().peak_bytes == 2800
    pool.verify()


@pytest.mark.parametrize("seed", range(3))
def test_p27_all_views_agree_after_every_operation_and_callbacks_fire(seed):
    pool, draw, leases, events = tracked(), random.Random(seed), [], []
    ends = [pool.on_allocate(events.append), pool.on_free(events.append)]
    for turn in range(60):
        if leases and draw.random() < 0.45:
            leases.pop(draw.randrange(len(leases))).release()
        else:
            leases.append(pool.allocate(draw.randrange(1, 1 << 16), tag=str(turn)))
        out = sum(lease.nbytes for lease in leases)
        stats, metrics = pool.get_stats(), pool.get_memory_tracker().metrics()
        rows = [row for row in pool.lease_rows() if row.ended_ns is None]
        assert stats.pool_allocated == metrics.current_bytes == out
        assert (
            sum(row.nbytes for row in rows) == sum(n for n, _ in pool.lease_tags().values()) == out
        )
        assert stats.live_leases == metrics.active_allocations == len(rows) == len(leases)
        assert stats.pool_peak == metrics.peak_bytes
        assert metrics.device_bytes == {"cpu": out}
        assert len(events) == metrics.operations == turn + 1
        assert sum(e.nbytes if e.kind == "allocate" else -e.nbytes for e in events) == out
        pool.verify()
    for end in ends:
        end()
