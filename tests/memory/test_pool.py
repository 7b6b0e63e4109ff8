"""The pool gives memory, takes it back once, counts every byte and keeps its limits."""

import gc
import os
import threading

import pytest
import torch

from bitnet_torch.errors import (
    BitNetError,
    ConfigurationError,
    LeaseError,
    OutOfMemoryError,
    ShapeError,
)
from bitnet_torch.memory import HybridMemoryPool, MemoryPoolConfig, MemoryStats
from bitnet_torch.memory.size_class import PAGE, SMALL_LIMIT, size_class


@pytest.fixture
def pool():
    pool = HybridMemoryPool()
    yield pool
    pool.verify()


def test_there_is_one_pool_of_the_process_also_for_threads_that_ask_at_once():
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(HybridMemoryPool.instance())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(pool) for pool in found}) == 1
    assert found[0].get_memory_tracker() is found[0].get_memory_tracker()


@pytest.mark.parametrize(
    "nbytes", [1, 511, 513, 512 << 10, (512 << 10) + 1, 1 << 20, (1 << 20) - 1, (64 << 20) + 1]
)
def test_p18_any_size_can_be_had_and_written(pool, nbytes):
    with pool.allocate(nbytes) as tensor:
        assert (tensor.shape, tensor.dtype) == ((nbytes,), torch.uint8)
        tensor.fill_(7)
        assert pool.get_stats().pool_allocated == nbytes
    assert pool.get_stats().pool_allocated == 0


def test_a_shape_and_a_dtype_make_a_contiguous_tensor(pool):
    lease = pool.allocate((3, 5, 7), torch.bfloat16, tag="kv")
    assert (lease.tensor.shape, lease.dtype) == ((3, 5, 7), torch.bfloat16)
    assert lease.tensor.is_contiguous()
    assert (lease.nbytes, lease.device, lease.tag) == (3 * 5 * 7 * 2, "cpu", "kv")
    assert pool.allocate((), torch.float32).tensor.shape == ()


@pytest.mark.parametrize("alignment", [1, 16, 64, 128, 4096, 1 << 16])
@pytest.mark.parametrize("shape", [1, 100, (3, 5)])
def test_p19_the_address_is_aligned_as_asked(pool, alignment, shape):
    leases = [pool.allocate(shape, torch.int8, alignment=alignment) for _ in range(5)]
    for lease in leases:
        assert lease.tensor.data_ptr() % alignment == 0
        lease.tensor.fill_(1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0,), ShapeError, "at least one byte"),
        ((-1,), ShapeError, "at least one byte"),
        (((3, -1),), ShapeError, "at least one byte"),
        (((3, 0),), ShapeError, "at least one byte"),
        ((10, torch.float32), ShapeError, "10 bytes are no whole number of torch.float32"),
    ],
)
def test_what_has_no_bytes_is_refused(pool, arguments, error, words):
    with pytest.raises(error, match=words):
        pool.allocate(*arguments)


def test_an_alignment_that_is_no_power_of_two_is_refused(pool):
    with pytest.raises(ConfigurationError, match="power of two, got 48"):
        pool.allocate(10, alignment=48)


def test_a_released_block_is_used_again_and_counted_as_a_hit(pool):
    lease = pool.allocate(1000)
    address = lease.tensor.data_ptr()
    lease.release()
    again = pool.allocate(1001)
    assert again.tensor.data_ptr() == address
    stats = pool.get_stats()
    assert (stats.hits, stats.misses, stats.live_leases) == (1, 1, 1)


@pytest.mark.parametrize("debug", [False, True])
def test_p15_a_second_release_or_a_foreign_lease_is_an_error_and_changes_nothing(debug):
    pool, other = HybridMemoryPool(MemoryPoolConfig(debug=debug)), HybridMemoryPool()
    lease = pool.allocate(100, tag="mine")
    with pytest.raises(LeaseError, match=r"'mine'.*belongs to another pool"):
        other.deallocate(lease)
    assert pool.get_stats().live_leases == 1
    pool.deallocate(lease)
    before = pool.counted("cpu")[0]
    with pytest.raises(LeaseError, match="was released before"):
        lease.release()
    assert pool.counted("cpu")[0] == before
    with pytest.raises(LeaseError, match="its tensor is gone"):
        _ = lease.tensor


def test_a_with_block_may_release_early():
    pool = HybridMemoryPool()
    lease = pool.allocate(10)
    with lease:
        lease.release()
    assert pool.get_stats().live_leases == 0


def test_a_dropped_lease_comes_back_and_is_counted(pool):
    lease = pool.allocate(1000)
    del lease
    gc.collect()
    stats = pool.get_stats()
    assert (stats.dropped, stats.live_leases, stats.pool_allocated) == (1, 0, 0)
    assert stats.cached == size_class(1000)


@pytest.mark.parametrize("keep", ["tensor", "view", "storage"])
def test_what_outlives_a_dropped_lease_keeps_its_bytes(pool, keep):
    lease = pool.allocate(1024)
    tensor = lease.tensor
    kept = {"tensor": tensor, "view": tensor[3:9], "storage": tensor.untyped_storage()}.pop(keep)
    address = tensor.data_ptr()
    del tensor, lease
    gc.collect()
    assert pool.get_stats().cached == 0
    assert pool.allocate(1024).tensor.data_ptr() != address
    assert kept is not None


def test_memory_taken_in_inference_mode_can_be_written_outside_of_it(pool):
    with torch.inference_mode():
        lease = pool.allocate(16, torch.float32)
        lease.tensor.zero_()
        lease.release()
    again = pool.allocate(16, torch.float32)
    assert not again.tensor.is_inference()
    again.tensor.add_(1)
    weight = torch.ones(4, requires_grad=True)
    again.tensor.mul_(weight).sum().backward()
    assert weight.grad is not None
    again.release()
    assert not pool.allocate(16, torch.float32).tensor.requires_grad


def test_the_hard_limit_trims_first_and_then_refuses_with_both_values(pool):
    pool.set_limits(hard=4096)
    pool.allocate(1024).release()
    pool.allocate(2048).release()
    lease = pool.allocate(4096)
    before = pool.counted("cpu")[0]
    with pytest.raises(OutOfMemoryError, match=r"100 bytes .512 rounded up. .* limit of 4096"):
        pool.allocate(100)
    after = pool.counted("cpu")[0]
    assert (after.misses, after.failed) == (before.misses + 1, before.failed + 1)
    after.misses, after.failed = before.misses, before.failed
    assert after == before
    lease.release()
    assert pool.get_stats().limit == 4096
    assert pool.get_stats().limit_source == "pool"


def test_a_limit_holds_when_threads_race_for_it():
    pool = HybridMemoryPool(MemoryPoolConfig(hard_limit=10 * 512))
    taken, refused = [], []

    def take():
        for _ in range(5):
            try:
                taken.append(pool.allocate(512))
            except OutOfMemoryError:
                refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (10, 20)
    assert pool.get_stats().pool_reserved == 10 * 512
    pool.verify()


def test_the_soft_limit_gives_cached_blocks_back_but_refuses_nothing(pool):
    pool.set_limits(soft=2048)
    pool.allocate(2048).release()
    lease = pool.allocate(4096)
    assert pool.get_stats().cached == 0
    lease.release()


def test_limits_are_checked(pool):
    with pytest.raises(ConfigurationError, match="soft_limit 2 is above hard_limit 1"):
        pool.set_limits(soft=2, hard=1)
    with pytest.raises(ConfigurationError, match="hard_limit must be at least 0 bytes, got -1"):
        MemoryPoolConfig(hard_limit=-1)
    with pytest.raises(ConfigurationError, match="keep_bytes"):
        pool.trim(-1)


def test_p22_trim_returns_the_bytes_that_reserved_really_falls_by(pool):
    for size in (1000, 5000, 2 << 20):
        pool.allocate(size).release()
    before = pool.get_stats().pool_reserved
    freed = pool.trim(keep_bytes=6000)
    after = pool.get_stats().pool_reserved
    assert freed == before - after > 0
    assert after <= 6000
    assert pool.trim() == after
    assert pool.get_stats().pool_reserved == 0


def test_no_more_is_cached_than_allowed():
    pool = HybridMemoryPool(MemoryPoolConfig(max_cached=1024))
    leases = [pool.allocate(512) for _ in range(4)]
    for lease in leases:
        lease.release()
    stats = pool.get_stats()
    assert (stats.cached, stats.evictions) == (1024, 2)
    pool.verify()


def test_memory_that_cannot_be_had_is_an_error_that_changes_nothing(pool):
    pool.allocate(1 << 20).release()
    with pytest.raises(OutOfMemoryError, match="cannot be had on cpu") as caught:
        pool.allocate(1 << 60)
    assert caught.value.context["requested"] == 1 << 60
    stats = pool.get_stats()
    assert (stats.failed, stats.live_leases, stats.pool_allocated, stats.cached) == (1, 0, 0, 0)
    assert stats.pool_peak == 1 << 20


def test_debug_mode_finds_a_write_after_release_and_names_the_lease():
    pool = HybridMemoryPool(MemoryPoolConfig(debug=True))
    with pool.allocate(64, torch.float32, tag="scores") as tensor:
        tensor.zero_()
    assert tensor.isnan().all()
    pool.verify()
    tensor[3] = 1.0
    with pytest.raises(LeaseError, match=r"byte 12 .*written after the release.*'scores'"):
        pool.verify()
    with pytest.raises(LeaseError, match="'scores'"):
        pool.allocate(64)
    pool.allocate(64).release()
    pool.verify()


def test_p20_callbacks_may_use_the_pool_and_one_that_raises_is_contained(pool):
    seen = []

    def reenter(event):
        seen.append((event.kind, event.nbytes, event.tag))
        if event.tag != "inner":
            pool.allocate(10, tag="inner").release()

    def fail(event):
        raise ValueError("no " + event.kind)

    ends = [pool.on_allocate(fail), pool.on_allocate(reenter), pool.on_free(reenter)]
    pool.allocate(100, tag="outer").release()
    assert seen[0] == ("allocate", 100, "outer")
    assert ("free", 100, "outer") in seen
    assert pool.callback_errors[0].error == "ValueError: no allocate"
    for end in (*ends, *ends):
        end()
    count = len(seen)
    pool.allocate(100).release()
    assert len(seen) == count


def test_two_live_leases_never_share_a_byte():
    pool, wrong = HybridMemoryPool(), []

    def work(number):
        for turn in range(200):
            lease = pool.allocate(256 + turn % 7 * 100)
            lease.tensor.fill_(number)
            if not bool((lease.tensor == number).all()):
                wrong.append((number, turn))
            lease.release()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.get_stats().live_leases == 0
    pool.verify()


def test_memory_that_is_there_already_can_be_entered_as_a_lease(pool):
    made = torch.ones(3, 1000)
    lease = pool.adopt(made[1], tag="head")
    stats = pool.get_stats()
    assert (stats.pool_allocated, stats.pool_reserved, stats.live_leases) == (12000, 12000, 1)
    assert lease.tensor.data_ptr() == made.data_ptr()
    assert (lease.nbytes, lease.tag) == (12000, "head")
    pool.verify()
    with pytest.raises(LeaseError, match="cannot be adopted again: 'again'"):
        pool.adopt(made, tag="again")
    with pytest.raises(ShapeError, match="whose storage is empty"):
        pool.adopt(torch.ones(0))
    lease.release()
    stats = pool.get_stats()
    assert (stats.pool_allocated, stats.pool_reserved, stats.cached) == (0, 0, 0)
    assert bool((made == 1).all())
    with pytest.raises(LeaseError, match="was released before"):
        lease.release()


@pytest.mark.parametrize("debug", [False, True])
def test_adopted_memory_is_never_handed_out_poisoned_or_taken_beyond_the_limit(debug):
    pool = HybridMemoryPool(MemoryPoolConfig(debug=debug, hard_limit=4096))
    made = torch.ones(512, dtype=torch.uint8)
    lease = pool.adopt(made)
    before = pool.counted("cpu")[0]
    with pytest.raises(OutOfMemoryError, match="limit of 4096: 512 are leased"):
        pool.adopt(torch.ones(4096, dtype=torch.uint8))
    assert pool.counted("cpu")[0].leased == before.leased
    lease.release()
    other = pool.allocate(512)
    assert other.tensor.data_ptr() != made.data_ptr()
    dropped = pool.adopt(made)
    del dropped
    gc.collect()
    assert pool.get_stats().dropped == 1
    assert bool((made == 1).all())
    other.release()
    pool.verify()


def test_a_child_process_gets_the_pool_in_one_piece(pool):
    lease = pool.allocate(1000)
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            pool.allocate(5000).release()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        children = [os.fork() for _ in range(1)]
        if children[0] == 0:
            status = 1
            try:
                pool.allocate(100).release()
                lease.release()
                pool.verify()
                status = 0
            finally:
                os._exit(status)  # whatever happens, a child does not go on with the tests
        assert os.waitpid(children[0], 0)[1] == 0
    finally:
        stop.set()
        thread.join()
    lease.release()


def test_a_wrong_count_is_found(pool):
    lease = pool.allocate(100)
    pool.counted("cpu")
    pool._store.counters_of("cpu").cached += 1
    with pytest.raises(BitNetError, match="cached is counted as 1 but is 0"):
        pool.verify()
    pool._store.counters_of("cpu").cached -= 1
    lease.release()


def test_what_is_unknown_is_none_and_what_is_known_is_not(pool):
    stats = pool.get_stats()
    assert isinstance(stats, MemoryStats)
    assert (stats.source, stats.exact, stats.allocated) == ("leases", False, 0)
    assert stats.reserved is stats.num_ooms is stats.peak_allocated is stats.idle_fraction is None
    assert stats.process_rss > 0
    assert stats.limit > 0
    assert stats.limit_source in ("host", "cgroup")
    assert stats.to_dict()["device"] == "cpu"


def test_size_classes_grow_with_the_size_and_waste_an_eighth_at_most():
    before = 0
    for size in [*range(1, 5000), *(n + d for n in (SMALL_LIMIT, 3 << 20) for d in (-1, 0, 1, 77))]:
        block = size_class(size)
        assert before <= block or size < 5000
        assert block >= size
        assert size_class(block) == block
        assert block - size < max(512 if size <= SMALL_LIMIT else PAGE, size / 8 + 1)
        before = block if size < 5000 else 0
