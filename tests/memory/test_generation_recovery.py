"""A generation that does not fit goes on in smaller batches, with the same tokens, and says so."""

import json

import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.assets import bundled_model
from bitnet_torch.errors import OutOfMemoryError
from bitnet_torch.generate import plan
from bitnet_torch.memory import HybridMemoryPool, RecoveryPolicy

TEXTS = ["ROMEO:", "Now is the winter", "To be", "O", "My lord, I"]
HOW = {"max_new_tokens": 6, "temperature": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def lm():
    return bt.load(bundled_model())


@pytest.fixture
def pool():
    pool = HybridMemoryPool.instance()
    pool.recoveries.clear()
    yield pool
    pool.recovery_policy = RecoveryPolicy()
    pool.recoveries.clear()


def room_for(monkeypatch, lm, most):
    """Refuse caches of more than ``most()`` sequences; return the sizes that were asked for."""
    asked, new_cache = [], lm.model.new_cache

    def limited(batch, length, dtype=None):
        asked.append(batch)
        if batch > most():
            raise OutOfMemoryError(f"no room for {batch} sequences")
        return new_cache(batch, length, dtype)

    monkeypatch.setattr(lm.model, "new_cache", limited)
    return asked


def test_a_batch_that_does_not_fit_is_split_with_the_same_tokens(monkeypatch, lm, pool, caplog):
    expected = [result.ids for result in lm.complete(TEXTS, **HOW)]
    asked = room_for(monkeypatch, lm, lambda: 2)
    results = lm.complete(TEXTS, **HOW)
    assert asked == [5, 5, 5, 2, 2, 1]
    assert [result.ids for result in results] == expected
    actions = ["trim", "empty cache", "smaller pieces"]
    assert [step.action for step in pool.recoveries] == actions
    for result in results:
        assert result.recoveries == tuple(map(str, pool.recoveries))
    assert "a generation ran out of memory (OutOfMemoryError: no room for 5" in caplog.text
    assert json.dumps(results[0].to_dict())
    assert lm.generate(TEXTS, **HOW) == [result.text for result in results]


def test_ids_with_padding_are_split_too(monkeypatch, lm, pool):
    ids = torch.arange(12).view(3, 4)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    expected = lm.generate(ids, max_new_tokens=4, attention_mask=mask)
    asked = room_for(monkeypatch, lm, lambda: 1)
    assert torch.equal(lm.generate(ids, max_new_tokens=4, attention_mask=mask), expected)
    assert asked == [3, 3, 3, 1, 1, 1]


def test_sequences_that_are_done_stay_done(monkeypatch, lm, pool):
    room = [3]
    asked = room_for(monkeypatch, lm, lambda: room[0])
    finish = plan.Plan.generation

    def shrinking(self, begin=0, end=None):
        room[0] = 3 if begin == 0 else 1
        return finish(self, begin, end)

    monkeypatch.setattr(plan.Plan, "generation", shrinking)
    assert len(lm.complete(TEXTS[:4], max_new_tokens=2)) == 4
    assert asked == [4, 4, 4, 2, 2, 1, 1]


def test_a_result_without_trouble_has_nothing_to_report(lm, pool):
    assert lm.complete("ROMEO:", max_new_tokens=2).recoveries == ()
    assert not pool.recoveries


def test_a_stream_reports_what_was_done_for_its_prompt(monkeypatch, lm, pool):
    whole, pieces = lm.model._hidden, []

    def short_of_memory(ids, mask, cache):
        pieces.append(ids.shape[1])
        if ids.shape[1] > 4:
            raise torch.OutOfMemoryError("no room")
        return whole(ids, mask, cache)

    monkeypatch.setattr(lm.model, "_hidden", short_of_memory)
    stream = lm.stream(torch.arange(8), max_new_tokens=2)
    list(stream)
    (result,) = stream.results()
    assert pieces[:5] == [8, 8, 8, 4, 4]
    assert [line.partition(";")[2].split(":")[0].strip() for line in result.recoveries] == [
        "trim",
        "empty cache",
        "smaller pieces",
    ]


def test_the_cpu_is_used_where_the_policy_allows_it_and_the_model_is_elsewhere(
    monkeypatch, lm, pool
):
    expected = lm.generate("ROMEO:", max_new_tokens=3)
    moved, move = [], lm.model.to
    monkeypatch.setattr(lm.model, "to", lambda device: (moved.append(str(device)), move(device))[1])
    room_for(monkeypatch, lm, lambda: 1 if moved else 0)
    with pytest.raises(OutOfMemoryError):
        lm.generate("ROMEO:", max_new_tokens=3)
    pool.recovery_policy = RecoveryPolicy(offload=True)
    with pytest.raises(OutOfMemoryError):
        lm.generate("ROMEO:", max_new_tokens=3)
    # The model lies on the CPU already; a GPU is not at hand, so the CPU plays one.
    monkeypatch.setattr(plan, "OFFLOADED_FROM", ("cpu",))
    assert lm.generate("ROMEO:", max_new_tokens=3) == expected
    assert moved == ["cpu"]
    assert pool.recoveries[-1].action == "offload"


def test_what_the_user_decides_is_what_is_done(monkeypatch, lm, pool):
    seen = []

    def policy(trouble):
        seen.append((trouble.work, trouble.pieces, len(trouble.steps)))
        return "smaller pieces" if trouble.pieces > 2 else None

    pool.recovery_policy = policy
    asked = room_for(monkeypatch, lm, lambda: 0)
    with pytest.raises(OutOfMemoryError, match="no room for 2 sequences"):
        lm.complete(TEXTS, max_new_tokens=2)
    assert asked == [5, 2]
    assert seen == [("a generation", 5, 0), ("a generation", 2, 1)]
