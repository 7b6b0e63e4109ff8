"""When memory runs out, what is done is written down, in order, and the result is the same."""

import logging

import pytest
import torch

from bitnet_torch.errors import ConfigurationError, OutOfMemoryError
from bitnet_torch.memory import HybridMemoryPool
from bitnet_torch.memory.recovery import (
    RecoveryPolicy,
    is_out_of_memory,
    recording,
    with_recovery,
)
from tests.bits import same_bits
from tests.models.tiny import tiny_model


@pytest.fixture
def pool():
    return HybridMemoryPool()


class Work:
    """Needs ``size`` units of memory and has ``room``; remembers every size it was given."""

    def __init__(self, room, error=OutOfMemoryError):
        self.room, self.error, self.sizes = room, error, []

    def __call__(self, size):
        self.sizes.append(size)
        if size > self.room:
            raise self.error(f"no room for {size}\nsecond line")
        return f"done with {size}"


def test_the_steps_are_taken_in_order_logged_and_kept(pool, caplog):
    pool.allocate(1000).release()
    work = Work(room=3)
    with caplog.at_level(logging.WARNING):
        assert with_recovery(work, 10, name="a prompt", device="cpu", pool=pool) == "done with 2"
    assert work.sizes == [10, 10, 10, 5, 2]
    assert [s.action for s in pool.recoveries] == ["trim", "empty cache"] + ["smaller pieces"] * 2
    assert pool.recoveries[0].detail == "1024 bytes given back"
    assert pool.recoveries[3].detail == "pieces of 2 from now on"
    assert str(pool.recoveries[2]) in caplog.text
    assert "a prompt ran out of memory (OutOfMemoryError: no room for 10)" in caplog.text


def test_what_cannot_be_had_at_all_is_raised_after_every_step(pool):
    work = Work(room=0)
    with pytest.raises(OutOfMemoryError, match="no room for 1"):
        with_recovery(work, 4, name="x", device="cpu", pool=pool)
    assert work.sizes == [4, 4, 4, 2, 1]


def test_the_cpu_is_the_last_resort_and_only_where_it_is_offered(pool):
    def attempt():
        return with_recovery(
            Work(0), 2, name="x", device="cpu", pool=pool, least=2, offload=lambda: "on the CPU"
        )

    with pytest.raises(OutOfMemoryError, match="no room for 2"):
        attempt()
    pool.recovery_policy = RecoveryPolicy(offload=True)
    assert attempt() == "on the CPU"
    assert pool.recoveries[-1].action == "offload"


@pytest.mark.parametrize(
    ("policy", "actions"),
    [
        (RecoveryPolicy(trim=False), ["empty cache", "smaller pieces"]),
        (RecoveryPolicy(empty_cache=False), ["trim", "smaller pieces"]),
        (RecoveryPolicy(trim=False, empty_cache=False), ["smaller pieces"]),
    ],
)
def test_a_policy_takes_only_the_steps_that_it_allows(pool, policy, actions):
    pool.recovery_policy = policy
    with_recovery(Work(room=2), 4, name="x", device="cpu", pool=pool)
    assert [step.action for step in pool.recoveries] == actions
    pool.recovery_policy = RecoveryPolicy(smaller=False)
    with pytest.raises(OutOfMemoryError):
        with_recovery(Work(room=2), 4, name="x", device="cpu", pool=pool)


def test_what_is_done_is_recorded_for_whoever_listens_in_this_thread(pool):
    outer, inner = [], []
    with recording(outer):
        with recording(inner):
            with_recovery(Work(room=2), 4, name="x", device="cpu", pool=pool)
        with_recovery(Work(room=1), 2, name="y", device="cpu", pool=pool)
    with_recovery(Work(room=1), 2, name="z", device="cpu", pool=pool)
    assert [step.work for step in inner] == ["x"] * 3
    assert [step.work for step in outer] == ["x"] * 3 + ["y"] * 3
    assert len(pool.recoveries) == 9


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("x"),
        torch.OutOfMemoryError("CUDA out of memory"),
        OutOfMemoryError("x"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_every_kind_of_shortage_is_known(error):
    assert is_out_of_memory(error)


def test_a_real_shortage_of_pytorch_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_other_errors_pass_through_untouched(pool, error):
    work = Work(room=0, error=error)
    with pytest.raises(error):
        with_recovery(work, 4, name="x", device="cpu", pool=pool)
    assert work.sizes == [4]
    assert not pool.recoveries


def test_the_user_may_replace_the_policy(pool):
    pool.recovery_policy = lambda trouble: "smaller pieces" if trouble.pieces > 2 else None
    work = Work(room=2)
    with_recovery(work, 8, name="x", device="cpu", pool=pool)
    assert work.sizes == [8, 4, 2]
    pool.recovery_policy = lambda trouble: "pray"
    with pytest.raises(ConfigurationError, match="wants 'pray', which is no step"):
        with_recovery(Work(room=0), 8, name="x", device="cpu", pool=pool)


def test_a_prompt_that_does_not_fit_is_read_in_pieces_with_the_same_result(monkeypatch):
    model = tiny_model().eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 12))
    with torch.inference_mode():
        expected = model.next_logits(ids, None, model.new_cache(2, 16))
    whole, pieces = model._hidden, []

    def short_of_memory(ids, mask, cache):
        pieces.append(ids.shape[1])
        if ids.shape[1] > 4:
            raise torch.OutOfMemoryError("no room")
        return whole(ids, mask, cache)

    monkeypatch.setattr(model, "_hidden", short_of_memory)
    pool = HybridMemoryPool.instance()
    pool.recoveries.clear()
    with torch.inference_mode():
        found = model.next_logits(ids, None, model.new_cache(2, 16))
    assert pieces == [12, 12, 12, 6, 3, 3, 3, 3]
    assert same_bits(found, expected)
    assert [step.action for step in pool.recoveries] == ["trim", "empty cache"] + 2 * [
        "smaller pieces"
    ]
    pool.recoveries.clear()


def test_the_key_value_cache_is_a_lease_that_ends_with_it():
    pool = HybridMemoryPool.instance()
    before = pool.get_stats()
    model = tiny_model()
    cache = model.new_cache(2, 16)
    during = pool.get_stats()
    assert during.pool_allocated - before.pool_allocated >= cache.nbytes - 8 * 1024
    assert during.live_leases > before.live_leases
    del cache
    assert pool.get_stats().pool_allocated == before.pool_allocated
