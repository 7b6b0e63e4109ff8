import pytest
import torch

from bitnet_torch.errors import ConfigurationError, GenerationError
from bitnet_torch.models import KVCache
from tests.bits import same_bits
from tests.models.tiny import tiny_config, tiny_model


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


def test_an_int8_cache_has_scales_and_takes_half_of_bfloat16s_bytes():
    model = tiny_model(dtype=torch.bfloat16)
    plain, int8 = model.new_cache(3, 10), model.new_cache(3, 10, "int8")
    assert (plain.dtype, int8.dtype) == (torch.bfloat16, torch.int8)
    assert int8.nbytes == plain.nbytes // 2 + 2 * 2 * 3 * 2 * 10 * 4  # layers, k and v, B, heads
    assert int8.layer(1).value_scale.shape == (3, 2, 10)
    assert plain.layer(1).key_scale is None
    for wrong in ("int4", torch.float16, torch.float32):
        with pytest.raises(ConfigurationError, match=r"model's dtype torch.bfloat16 or int8, got"):
            model.new_cache(1, 2, wrong)


@pytest.mark.parametrize("dtype", [None, "int8"])
@torch.inference_mode()
def test_nothing_is_moved_or_allocated_as_a_cache_grows(dtype):
    model = tiny_model()
    cache = model.new_cache(1, 9, dtype)
    before = [(t.data_ptr(), t.shape) for t in (cache.start, cache.first, *cache.layer(1)[:2])]
    for _ in range(9):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    assert [
        (t.data_ptr(), t.shape) for t in (cache.start, cache.first, *cache.layer(1)[:2])
    ] == before
    assert cache.start.item() == cache.filled == 9


@torch.no_grad()
def test_a_truncated_cache_goes_on_as_if_the_rest_had_not_been():
    model = tiny_model()
    ids, mask = torch.randint(96, (2, 20)), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :7] = 0
    clean = model.new_cache(2, 20)
    want = torch.cat([model(ids[:, s], mask[:, s], clean) for s in (slice(12), slice(12, 20))], 1)
    for keep in (0, 3, 7, 11, 12):
        cache = model.new_cache(2, 20)
        model(ids[:, :12], mask[:, :12], cache)
        cache.truncate(keep)
        assert cache.filled == cache.start.item() == keep
        assert same_bits(model(ids[:, keep:], mask[:, keep:], cache), want[:, keep:])


@torch.no_grad()
def test_what_cannot_be_truncated_is_named():
    cache = tiny_model().new_cache(1, 8)
    cache.advance(3)
    for length in (-1, 4):
        with pytest.raises(GenerationError, match=f"cache of 3 tokens cannot be cut to {length}"):
            cache.truncate(length)


@torch.no_grad()
def test_padding_between_tokens_is_refused_also_when_it_comes_in_pieces():
    model, ids = tiny_model(), torch.zeros(2, 6, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 1]])
    hole = r"attention_mask\[1, 3\] is 0 between two tokens"
    for cache in (None, model.new_cache(2, 12)):
        with pytest.raises(GenerationError, match=hole):
            model(ids, mask, cache)
    cache = model.new_cache(2, 12)
    model(ids[:, :4], mask[:, :4], cache)
    for rest in (mask[:, 4:], None):
        tokens = ids[:, 4:] if rest is not None else ids[:, :1]
        with pytest.raises(
            GenerationError, match=r"sequence 1 has its tokens at 1 to 2 .* padding"
        ):
            model(tokens, rest, cache)
    assert cache.filled == 4
    model(ids[:, :2], torch.tensor([[1, 1], [0, 0]]), cache)
    cache.truncate(3)
    model(ids[:, :1], None, cache)


@torch.no_grad()
def test_a_sequence_may_begin_in_any_piece():
    model, ids = tiny_model(), torch.randint(96, (3, 12))
    mask = torch.arange(12) >= torch.tensor([0, 5, 9])[:, None]
    want, cache = model(ids, mask), model.new_cache(3, 12)
    got = torch.cat(
        [model(i, m, cache) for i, m in zip(ids.split(4, 1), mask.split(4, 1), strict=True)], 1
    )
    assert same_bits(got, want)
    assert cache.first.tolist() == [0, 5, 9]


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
    assert same_bits(model(ids[:, 5:], cache=cache), model(ids[:, 5:], cache=clean))


def _interrupt(module, args):
    raise KeyboardInterrupt


@torch.inference_mode()
def test_a_cache_takes_over_tokens_of_another_and_goes_on_from_them():
    model = tiny_model()
    ids = torch.arange(9)[None]
    for dtype in (None, "int8"):
        old, new = model.new_cache(1, 7, dtype), model.new_cache(1, 9, dtype)
        model(ids[:, :7], cache=old)
        new.copy_from(old, 5)
        assert (new.filled, int(new.start)) == (5, 5)
        whole = model(ids, cache=model.new_cache(1, 9, dtype))
        assert same_bits(model(ids[:, 5:], cache=new), whole[:, 5:])


def test_tokens_that_are_not_there_or_do_not_fit_are_not_taken_over():
    model = tiny_model()
    old = model.new_cache(1, 4)
    for new in (model.new_cache(2, 4), model.new_cache(1, 4, "int8"), model.new_cache(1, 4)):
        with pytest.raises(GenerationError, match="1 tokens of a cache"):
            new.copy_from(old, 1)
        assert new.filled == 0
