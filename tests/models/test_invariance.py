"""A token's logits have the same bits however it was asked for: the promise, for a whole model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitnet_torch.nn import BitLinear, pack
from bitnet_torch.ops import use_backend
from tests.bits import same_bits
from tests.models.tiny import tiny_model

TOKENS = 150


def long_model(linear=BitLinear, **changes):
    """Return a model whose context is several chunks of keys."""
    return tiny_model(linear, max_position_embeddings=200, **changes)


def prompts(batch=3):
    return torch.randint(96, (batch, TOKENS))


KINDS = [
    {"linear": BitLinear},
    {"linear": BitLinear, "dtype": torch.bfloat16, "hidden_act": "silu"},
    {"linear": nn.Linear, "attn_sub_norm": False, "tie_word_embeddings": True},
]


@pytest.fixture(params=KINDS, ids=["ternary", "bfloat16", "float"])
def model(request):
    return long_model(**request.param)


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch(model):
    ids = prompts()
    together = model(ids)
    for b in range(3):
        assert same_bits(model(ids[b : b + 1]), together[b : b + 1])


@torch.no_grad()
def test_logits_do_not_depend_on_padding_on_either_side(model):
    ids = prompts()
    place = torch.arange(TOKENS)
    left = place >= torch.tensor([0, 33, 140])[:, None]
    right = place < torch.tensor([TOKENS, 90, 1])[:, None]
    for mask in (left, right, left.long(), torch.ones_like(left)):
        padded = model(ids, mask)
        assert bool(padded.isfinite().all())
        for b in range(3):
            real = mask[b].bool()
            assert same_bits(padded[b, real], model(ids[b : b + 1, real])[0])


@pytest.mark.parametrize("pieces", [[TOKENS], [1] * TOKENS, [64, 64, 22], [77, 1, 1, 71]])
@torch.no_grad()
def test_logits_do_not_depend_on_the_cache_or_on_how_the_prompt_is_cut(model, pieces):
    ids = prompts(2)
    mask = torch.arange(TOKENS) >= torch.tensor([0, 70])[:, None]
    whole = model(ids, mask)
    for length in (TOKENS, 200):
        cache = model.new_cache(2, length)
        parts = zip(ids.split(pieces, 1), mask.split(pieces, 1), strict=True)
        assert same_bits(torch.cat([model(i, m, cache) for i, m in parts], 1), whole)


@pytest.mark.parametrize("pieces", [[1] * TOKENS, [64, 64, 22], [77, 1, 1, 71]])
@torch.no_grad()
def test_an_int8_cache_too_gives_bits_of_its_own_for_any_cut(model, pieces):
    ids = prompts(2)
    mask = torch.arange(TOKENS) >= torch.tensor([0, 70])[:, None]
    whole = model(ids, mask, model.new_cache(2, TOKENS, "int8"))
    cache = model.new_cache(2, 200, "int8")
    parts = zip(ids.split(pieces, 1), mask.split(pieces, 1), strict=True)
    assert same_bits(torch.cat([model(i, m, cache) for i, m in parts], 1), whole)
    assert not same_bits(whole, model(ids, mask))


@torch.no_grad()
def test_logits_do_not_depend_on_the_threads(model, threads):
    ids = prompts(2)
    threads(1)
    one = model(ids)
    for count in (2, 3):
        threads(count)
        assert same_bits(model(ids), one)
        cache = model.new_cache(2, TOKENS)
        parts = [model(piece, cache=cache) for piece in ids.split([TOKENS - 1, 1], 1)]
        assert same_bits(torch.cat(parts, 1), one)


@torch.no_grad()
def test_logits_are_those_of_the_reference(model):
    ids = prompts(1)
    with use_backend("reference"):
        want = model(ids)
    assert same_bits(model(ids), want)


def test_training_evaluation_and_the_packed_model_have_the_same_bits():
    model, ids = long_model(), prompts(2)
    trained = model(ids)
    trained.logsumexp(-1).sum().backward()
    with torch.no_grad():
        assert same_bits(model.eval()(ids), trained)
    pack(model)
    with torch.inference_mode():
        assert same_bits(model(ids), trained)
        cache = model.new_cache(2, TOKENS)
        steps = [model(piece, cache=cache) for piece in ids.split(1, 1)]
        assert same_bits(torch.cat(steps, 1), trained)


@torch.no_grad()
def test_pytorchs_attention_is_nowhere_in_the_forward_pass(monkeypatch):
    def called(*args, **kwargs):
        raise AssertionError("F.scaled_dot_product_attention was called")

    model, ids = long_model(), prompts(1)
    want = model(ids)
    monkeypatch.setattr(F, "scaled_dot_product_attention", called)
    assert same_bits(model(ids), want)
    assert same_bits(model(ids, cache=model.new_cache(1, TOKENS)), want)
