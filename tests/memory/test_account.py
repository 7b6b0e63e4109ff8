"""A generation is explained: weights, head, cache, workspaces, and the rest as a number."""

import gc
import itertools

import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.assets import bundled_model
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory import HybridMemoryPool
from bitnet_torch.nn import PackedBitLinear
from tests.memory.conftest import needs_compiler

PROMPT, NEW = torch.arange(8), 24


def storages(module):
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in own}


def weights_in(model, kind):
    found = {}
    for module in model.modules():
        if type(module) is kind:
            found |= storages(module)
    return sum(found.values())


def test_a_generation_is_explained_to_the_last_activation(backend, capsys):
    pool = HybridMemoryPool.instance()
    before = pool.lease_tags()
    with bt.memory.track(level="track", backend=backend) as tracker:
        lm = bt.load(bundled_model(), lm_head="screened")
        lm.generate(PROMPT, max_new_tokens=NEW)
        account = tracker.fullest()
        workspaces = pool.lease_tags()["cpu workspace"][0]
    config = lm.model.config
    parts = account.parts
    assert account.moment == "at the end of a forward pass of Decoder"
    assert parts["weights in PackedBitLinear"] == weights_in(lm.model, PackedBitLinear)
    assert parts["weights in Embedding"] == lm.model.model.embed_tokens.weight.nbytes
    cache = config.num_hidden_layers * 2 * (len(PROMPT) + NEW - 1) * config.num_key_value_heads
    cache *= config.head_dim * lm.model.dtype.itemsize
    # Blocks are at most an eighth larger than what was asked for.
    assert cache <= parts["kv cache"] <= cache * 9 / 8 + 512
    assert parts["int8 head"] >= lm._head.nbytes
    assert workspaces <= parts["cpu workspace"]
    assert before.get("int8 head", (0, 0))[0] + lm._head.nbytes <= parts["int8 head"]
    # What the pass returns, what it was given, and blocks that other tests' pools have kept.
    hidden = len(PROMPT) * config.hidden_size * lm.model.dtype.itemsize
    with capsys.disabled():
        print(f"\n{account.unexplained} of {account.total} bytes of a generation are unexplained")
    assert account.unexplained <= 2 * hidden + 2048
    assert sum(parts.values()) + account.unexplained == account.total


def test_an_account_of_now_is_that_of_the_snapshot(tracker, training, backend):
    with pytest.raises(ConfigurationError, match=r"account\(\) needs the tracker"):
        tracker.account()
    with tracker.start("track", backend=backend), tracker.attach(training.model):
        kept = torch.ones(1000) * 2
        account, snapshot = tracker.account(), tracker.snapshot()
        assert tracker.fullest() is None
        training.step()
        fullest = tracker.fullest()
    tracker.detach()
    assert account.moment == "now"
    assert account.total == snapshot.nbytes
    assert account.parts["weights in Linear"] == weights_in(training.model, torch.nn.Linear)
    assert account.unexplained >= kept.nbytes
    assert fullest.unexplained > account.unexplained  # the activations that backward wants
    assert list(fullest.parts.values()) == sorted(fullest.parts.values(), reverse=True)


def test_the_fullest_moment_is_of_the_recording_that_is_on(tracker, training):
    for _ in range(2):
        with tracker.start("track"), tracker.attach(training.model):
            assert tracker.fullest() is None
            training.model(training.ids)
            assert tracker.fullest() is not None
        tracker.detach()


def test_weights_of_a_module_that_is_called_later_are_found_in_the_fullest_moment(tracker):
    late = torch.nn.Linear(100, 100)
    early = torch.nn.Linear(50, 50)
    with tracker.start("track"):
        tracker.attach_all()
        tracker.track(late)
        tracker.track(early)
        kept = torch.ones(100_000)
        early(torch.ones(50))
        del kept
        late(torch.ones(100))
    tracker.detach()
    nbytes = sum(p.nbytes for module in (late, early) for p in module.parameters())
    assert tracker.fullest().parts["weights in Linear"] == nbytes


@needs_compiler
def test_no_token_after_the_first_needs_memory_that_is_not_there(tracker):
    """Every token takes and frees the same short-lived tensors; nothing that is new stays."""
    pool = HybridMemoryPool.instance()
    lm = bt.load(bundled_model())
    lm.generate(PROMPT, max_new_tokens=2)
    gc.collect()
    with tracker.start("track", backend="allocator"):
        seen = [pool.get_stats() for _ in lm.stream(PROMPT, max_new_tokens=8)]
    for field in ("allocated", "peak_allocated", "pool_allocated", "pool_reserved", "misses"):
        assert len({getattr(stats, field) for stats in seen}) == 1, field
    counts = [b.num_allocs - a.num_allocs for a, b in itertools.pairwise(seen[1:])]
    assert len(set(counts)) == 1
