import pytest
import torch

from bitnet_torch.errors import ConfigurationError, GenerationError
from bitnet_torch.models import KVCache
from tests.models.tiny import rounding_bound, tiny_config, tiny_model


def test_memory_is_claimed_once_and_counted():
    cache = KVCache(tiny_config(), batch=3, length=10, dtype=torch.bfloat16)
    assert (
        cache.nbytes == 2 * 2 * 3 * 2 * 10 * 16 * 2
    )  # layers, k and v, B, heads, length, D, bytes
    assert (cache.batch, cache.length, cache.filled) == (3, 10, 0)


def test_a_cache_beyond_the_context_is_refused_with_both_lengths():
    with pytest.raises(GenerationError, match=r"65 tokens.* 64"):
        KVCache(tiny_config(), 1, 65)
    with pytest.raises(ConfigurationError, match="got 0, 5"):
        KVCache(tiny_config(), 0, 5)


@torch.no_grad()
def test_writing_past_the_end_names_both_numbers_and_changes_nothing():
    model = tiny_model()
    cache = model.new_cache(1, 8)
    model(torch.zeros(1, 6, dtype=torch.int64), cache=cache)
    with pytest.raises(GenerationError, match="3 more tokens after 6 do not fit a cache of 8"):
        model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(GenerationError, match="2 sequences; the cache was made for 1"):
        model(torch.zeros(2, 1, dtype=torch.int64), cache=cache)
    assert cache.filled == 6
    model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)


@pytest.mark.parametrize("act", ["relu2", "silu"])
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [16, 16, 8], [33, 1, 1, 5]])
@torch.no_grad()
def test_prefill_and_decode_agree_with_the_full_forward(act, pieces):
    model = tiny_model(hidden_act=act)
    ids = torch.randint(96, (2, 40))
    full = model(ids)
    cache = model.new_cache(2, 40)
    got = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, 1)], 1)
    assert (got - full).abs().max() <= rounding_bound(model, full)


@torch.no_grad()
def test_padding_in_a_cache_is_never_looked_at():
    model = tiny_model()
    ids, mask = torch.randint(96, (2, 20)), torch.ones(2, 20, dtype=torch.int64)
    mask[0, :7] = 0
    cache = model.new_cache(2, 20)
    first = model(ids[:, :12], mask[:, :12], cache)
    rest = model(ids[:, 12:], None, cache)
    alone = model(ids[:1, 7:])
    got = torch.cat((first, rest), 1)[:1, 7:]
    assert (got - alone).abs().max() <= rounding_bound(model, alone)


@torch.no_grad()
def test_an_interrupted_forward_leaves_the_cache_as_it_was():
    model = tiny_model()
    ids = torch.randint(96, (1, 9))
    cache, clean = model.new_cache(1, 9), model.new_cache(1, 9)
    model(ids[:, :5], cache=cache)
    model(ids[:, :5], cache=clean)
    hook = model.model.layers[1].register_forward_pre_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(ids[:, 5:] + 1, cache=cache)
    hook.remove()
    assert torch.equal(model(ids[:, 5:], cache=cache), model(ids[:, 5:], cache=clean))


def _interrupt(module, args):
    raise KeyboardInterrupt
