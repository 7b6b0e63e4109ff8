"""Any sequence of what people do with a pool, alone and from threads, leaves every count right."""

import gc
import os
import threading
import time

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from bitnet_torch.errors import LeaseError, OutOfMemoryError
from bitnet_torch.memory import HybridMemoryPool, MemoryPoolConfig, TrackingConfig

SIZES = st.one_of(st.integers(1, 4096), st.integers(1, 3 << 20))
TAGS = st.sampled_from(["", "kv", "scratch"])


class PoolMachine(RuleBasedStateMachine):
    """A pool beside a plain list of the leases that are out."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        config = TrackingConfig(sampling_rate=0.5, max_timeline_entries=50)
        self.pool = HybridMemoryPool(MemoryPoolConfig(tracking=config, max_cached=4 << 20))
        self.live, self.peak, self.hard = {}, 0, None

    def _note(self):
        self.peak = max(self.peak, sum(lease.nbytes for lease in self.live.values()))

    @rule(target=leases, size=SIZES, tag=TAGS, power=st.integers(0, 13))
    def allocate(self, size, tag, power):
        try:
            lease = self.pool.allocate(size, tag=tag, alignment=1 << power)
        except OutOfMemoryError:
            assert self.hard is not None
            return None
        assert lease.tensor.data_ptr() % (1 << power) == 0
        self.live[id(lease)] = lease
        lease.tensor.fill_(id(lease) % 251)
        self._note()
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease):
        if lease is not None:
            assert bool((lease.tensor == id(lease) % 251).all())
            del self.live[id(lease)]
            lease.release()
            with pytest.raises(LeaseError):
                self.pool.deallocate(lease)

    @rule(keep=st.integers(0, 1 << 20))
    def trim(self, keep):
        before = self.pool.get_stats().pool_reserved
        assert self.pool.trim(keep) == before - self.pool.get_stats().pool_reserved
        assert self.pool.get_stats().cached <= keep

    @rule(hard=st.none() | st.integers(1 << 20, 8 << 20))
    def limit(self, hard):
        self.pool.set_limits(hard=hard)
        self.hard = hard

    @rule(size=st.integers(1, 5000))
    def drop(self, size):
        if self.hard is None:
            self.pool.allocate(size)
            gc.collect()
            self._note()
            self.peak = max(self.peak, self.pool.get_stats().pool_peak)

    @rule(size=st.integers(1, 5000))
    def work_in_threads(self, size):
        refused = []

        def work():
            for _ in range(5):
                try:
                    self.pool.allocate(size).release()
                except OutOfMemoryError as error:
                    refused.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.hard is not None or not refused
        self.peak = max(self.peak, self.pool.get_stats().pool_peak)

    @rule(size=SIZES)
    def adopt(self, size):
        made = torch.zeros(size, dtype=torch.uint8)
        try:
            lease = self.pool.adopt(made, tag="adopted")
        except OutOfMemoryError:
            assert self.hard is not None
            return
        self.live[id(lease)] = lease
        self._note()
        self.every_view_agrees()
        del self.live[id(lease)]
        lease.release()

    @rule()
    def fork(self):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.pool.allocate(100).release()
                for lease in self.live.values():
                    lease.release()
                self.pool.verify()
                assert self.pool.get_stats().pool_allocated == 0
                status = 0
            except OutOfMemoryError:
                status = 0 if self.hard is not None else 1
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    @invariant()
    def every_view_agrees(self):
        self.pool.verify()
        stats, metrics = self.pool.get_stats(), self.pool.get_memory_tracker().metrics()
        nbytes = sum(lease.nbytes for lease in self.live.values())
        assert stats.pool_allocated == metrics.current_bytes == stats.allocated == nbytes
        assert stats.live_leases == metrics.active_allocations == len(self.live)
        assert sum(nbytes for nbytes, _ in self.pool.lease_tags().values()) == nbytes
        assert stats.pool_peak == metrics.peak_bytes == self.peak
        assert stats.hits + stats.misses - stats.failed >= stats.live_leases


class TestPoolMachine(PoolMachine.TestCase):
    settings = settings(max_examples=5, stateful_step_count=20, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestPoolMachineAtLength(PoolMachine.TestCase):
    settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    "seconds", [1, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_eight_threads_lose_no_byte(seconds):
    pool = HybridMemoryPool(MemoryPoolConfig(tracking=TrackingConfig.standard()))
    tracker, wrong, stop = pool.get_memory_tracker(), [], time.monotonic() + seconds

    def work(number):
        generator = torch.Generator().manual_seed(number)
        held = []
        while time.monotonic() < stop:
            size = int(torch.randint(1, 1 << 16, (), generator=generator))
            held.append(pool.allocate(size))
            held[-1].tensor.fill_(number)
            if len(held) > 10:
                lease = held.pop(size % len(held))
                if not bool((lease.tensor == number).all()):
                    wrong.append(number)
                if size % 7:
                    lease.release()
            torch.ones(size)
        for lease in held:
            lease.release()

    with tracker.start("track"):
        start = pool.get_stats().allocated
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        assert not wrong
        pool.verify()
        assert pool.get_stats().live_leases == 0
        pool.trim()
        # Each thread's generator keeps its state, nothing else is left.
        assert abs(pool.get_stats().allocated - start) <= 8 * 16 * 1024
