"""A generation that begins like an earlier one reads only what is new, and gives the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bitnet_torch as bt
from bitnet_torch.assets import bundled_model
from bitnet_torch.errors import GenerationError
from bitnet_torch.generate import LanguageModel, PrefixCache
from bitnet_torch.io.tokenizer import IdsOnly
from tests.models.tiny import tiny_model

FIRST = "HAMLET.\nTo be, or not to be, that is the question"
SECOND = "HAMLET.\nTo be, or not to go, that is"


@pytest.fixture(scope="module")
def lm():
    return bt.load(bundled_model())


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"cache": "int8"},
        {"speculative": 8},
        {"temperature": 0.8, "top_k": 20, "seed": 3},
        {"logprobs": 2},
    ],
    ids=str,
)
def test_what_is_generated_has_the_bits_it_has_without(lm, how):
    prefix = PrefixCache()
    for prompt in (FIRST, SECOND, SECOND, FIRST, "O"):
        with_it = lm.complete(prompt, 12, prefix_cache=prefix, **how)
        without = lm.complete(prompt, 12, **how)
        assert (with_it.ids, with_it.text, with_it.logprobs) == (
            without.ids,
            without.text,
            without.logprobs,
        )


def test_only_what_is_new_is_read(lm, monkeypatch):
    lengths = []
    forward = type(lm.model).next_logits

    def counting(self, ids, mask, cache):
        lengths.append(ids.shape[1])
        return forward(self, ids, mask, cache)

    monkeypatch.setattr(lm, "_reader", lambda choices, batch: lm.model)
    monkeypatch.setattr(type(lm.model), "next_logits", counting)
    prefix = PrefixCache()
    first = lm.complete("To be, or", 5, prefix_cache=prefix)
    assert lengths[0] == 9
    # The last token that was chosen was never fed back.
    assert len(prefix) == 9 + 5 - 1
    lengths.clear()
    lm.complete("To be, or" + first.text + "!", 5, prefix_cache=prefix)
    assert lengths[0] == 2
    lengths.clear()
    lm.complete("To be, or", 5, prefix_cache=prefix)
    assert lengths[0] == 1


def test_a_stream_that_is_left_amid_guesses_keeps_only_what_is_certain():
    # Of so few tokens those that are drawn at random often suggest others, and refute them.
    lm = LanguageModel(tiny_model(vocab_size=4), IdsOnly(4, (), "ids only"))
    repetitive = torch.tensor([1, 2, 3] * 5)
    refuted = 0
    for taken in range(1, 11):
        prefix = PrefixCache()
        drawn = {"temperature": 9.0, "seed": taken, "speculative": 4, "prefix_cache": prefix}
        stream = lm.stream(repetitive, 12, **drawn)
        made = torch.stack([next(stream) for _ in range(taken)])
        refuted += stream.results()[0].proposed - stream.results()[0].accepted
        del stream
        assert 15 <= len(prefix) < 15 + taken
        prompt = torch.cat((repetitive, made))
        assert torch.equal(lm.generate(prompt, 8, prefix_cache=prefix), lm.generate(prompt, 8))
    assert refuted


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=2, max_size=4)
)
def test_any_prompts_one_after_the_other(prompts):
    lm = LanguageModel(tiny_model(), IdsOnly(96, (), "ids only"))
    prefix = PrefixCache()
    for prompt in map(torch.tensor, prompts):
        kept = lm.generate(prompt, 4, prefix_cache=prefix)
        assert torch.equal(kept, lm.generate(prompt, 4))


def test_what_it_cannot_serve_is_refused_by_name(lm):
    prefix = PrefixCache()
    with pytest.raises(GenerationError, match="prefix_cache serves one sequence, got 2"):
        lm.generate(["a", "b"], 2, prefix_cache=prefix)
    ids, mask = torch.tensor([[0, 65, 66]]), torch.tensor([[0, 1, 1]])
    with pytest.raises(GenerationError, match="without padding"):
        lm.generate(ids, 2, attention_mask=mask, prefix_cache=prefix)
    lm.generate("a", 2, prefix_cache=prefix)
    other = bt.load(bundled_model())
    with pytest.raises(GenerationError, match="of another model"):
        other.generate("a", 2, prefix_cache=prefix)
    prefix.clear()
    assert len(prefix) == 0
    other.generate("a", 2, prefix_cache=prefix)


def test_another_kind_of_cache_begins_anew(lm):
    prefix = PrefixCache()
    lm.generate(FIRST, 4, prefix_cache=prefix)
    assert lm.generate(FIRST, 4, prefix_cache=prefix, cache="int8") == lm.generate(
        FIRST, 4, cache="int8"
    )
