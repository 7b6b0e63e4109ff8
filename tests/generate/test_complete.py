"""Batches of texts, ends of every kind, log-probabilities, and what the result says."""

import json
import math

import pytest
import torch
from torch import nn

from bitnet_torch.errors import GenerationError
from bitnet_torch.generate import LanguageModel
from bitnet_torch.generate import decode as decode_module
from bitnet_torch.io import ByteTokenizer
from bitnet_torch.io.tokenizer import IdsOnly
from bitnet_torch.nn import BitLinear
from tests.models.tiny import tiny_model

TEXTS = ["To be, or not to be", "O", "Good night, good night! Parting", "\u20ac\u20ac"]


def language_model(linear=BitLinear, eos_ids=(), **changes):
    return LanguageModel(tiny_model(linear, vocab_size=256, **changes), ByteTokenizer(eos_ids))


SETTINGS = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 5},
    {"repetition_penalty": 1.3},
    {"speculative": 4},
    {"temperature": 0.3, "seed": 2, "speculative": 3, "repetition_penalty": 1.2},
    {"stop": ["e", "\ufffd"]},
    {"cache": "int8"},
    {"cache": "int8", "speculative": 4},
]


@pytest.mark.parametrize("how", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_texts_of_a_batch_are_what_they_are_alone(how, dtype):
    lm = language_model(eos_ids=(33, 90), dtype=dtype)
    together = lm.complete(TEXTS, 20, logprobs=3, **how)
    assert lm.generate(TEXTS, 20, **how) == [r.text for r in together]
    for row, text in enumerate(TEXTS):
        seed = {"seed": how["seed"] + row} if "seed" in how else {}
        alone = lm.complete(text, 20, logprobs=3, **{**how, **seed})
        # Floats included: the log-probabilities have the same bits, too.
        assert together[row].logprobs == alone.logprobs
        assert (together[row].text, together[row].ids) == (alone.text, alone.ids)
        assert together[row].finish_reason == alone.finish_reason
        assert together[row].prompt_ids == alone.prompt_ids == tuple(text.encode())


def says(lm, texts, monkeypatch):
    """Make the model say these bytes, one for each sequence, whatever it is given."""
    said = iter(zip(*texts, strict=True))

    def next_logits(ids, mask, cache):
        return nn.functional.one_hot(torch.tensor(next(said)), 256).float()

    monkeypatch.setattr(lm.model, "next_logits", next_logits)


def test_every_sequence_ends_on_its_own(monkeypatch):
    lm = language_model(eos_ids=(10,))
    says(lm, [b"ab\nxxxxx", b"abcdefgh", b"a<stop>x"], monkeypatch)
    results = lm.complete(["x", "yy", "z"], 8, stop="<stop>")
    assert [r.text for r in results] == ["ab", "abcdefgh", "a"]
    assert [r.finish_reason for r in results] == ["eos", "length", "stop"]
    assert [bytes(r.ids) for r in results] == [b"ab\n", b"abcdefgh", b"a<stop>"]
    assert [r.prompt_ids for r in results] == [(120,), (121, 121), (122,)]


def test_a_stop_text_ends_a_stream_and_is_never_shown(monkeypatch):
    lm = language_model()
    says(lm, [b"one<en<end>two"], monkeypatch)
    stream = lm.stream("x", 14, stop=["<end>", "never"])
    assert list(stream) == ["o", "ne", "<en"]
    (result,) = stream.results()
    assert (result.text, result.finish_reason) == ("one<en", "stop")
    assert bytes(result.ids) == b"one<en<end>"


def test_a_beginning_of_a_stop_text_is_text_when_nothing_follows(monkeypatch):
    lm = language_model()
    says(lm, [b"ab<e"], monkeypatch)
    assert lm.generate("x", 4, stop="<end>") == "ab<e"
    # A byte that waits for the rest of its character becomes a stop text at the very end.
    says(lm, [b"ab\xe2"], monkeypatch)
    result = lm.complete("x", 3, stop="\ufffd")
    assert (result.text, result.finish_reason) == ("ab", "stop")


def test_ids_stop_at_a_text_too(monkeypatch):
    lm = language_model()
    says(lm, [b"abcd", b"xxab"], monkeypatch)
    out = lm.generate(torch.tensor([[1], [2]]), 4, stop="bc")
    assert out.tolist() == [[1, 97, 98, 99, 99], [2, 120, 120, 97, 98]]


def test_log_probabilities_are_those_of_the_logits():
    lm = language_model(nn.Linear)
    result = lm.complete("To be", 6, temperature=0.9, top_k=5, seed=1, logprobs=4)
    ids = torch.tensor([[*result.prompt_ids, *result.ids]])
    every = lm.model(ids)[0].detach().double().log_softmax(-1)
    assert len(result.logprobs) == len(result.ids) == 6
    for step, token in enumerate(result.logprobs):
        row = every[len(result.prompt_ids) - 1 + step]
        assert token.id == result.ids[step]
        assert token.logprob == float(row[token.id])
        assert [i for i, _ in token.top] == row.topk(4).indices.tolist()
        assert [p for _, p in token.top] == row.topk(4).values.tolist()
    assert lm.complete("To be", 2, logprobs=0).logprobs[0].top == ()
    assert lm.complete("To be", 2).logprobs is None


def test_an_int8_cache_is_asked_for(monkeypatch):
    lm, made = language_model(), []
    real = lm.model.new_cache
    monkeypatch.setattr(lm.model, "new_cache", lambda *a: made.append(real(*a)) or made[-1])
    lm.generate("abc", 5, cache="int8")
    lm.generate("abc", 5)
    assert [cache.dtype for cache in made] == [torch.int8, torch.float32]


def test_equal_logits_are_ordered_by_id():
    (found,) = decode_module.logprobs_of(torch.zeros(1, 8), [5], 3)
    assert [i for i, _ in found.top] == [0, 1, 2]
    assert found.logprob == -math.log(8)


def test_a_result_is_plain_json():
    made = language_model().complete("a", 3, logprobs=1).to_dict()
    assert json.loads(json.dumps(made))["tokens_per_pass"] == 1.0


def test_one_token_needs_no_pass():
    result = language_model().complete("a", 1, speculative=3)
    assert (result.passes, result.tokens_per_pass) == (0, None)


def test_what_is_not_read_to_its_end_is_cancelled():
    stream = language_model().stream("abc", 30)
    next(stream)
    (result,) = stream.results()
    assert result.finish_reason == "cancelled"
    assert 1 <= len(result.ids) < 30


def test_ids_give_results_with_and_without_a_tokenizer():
    ids = torch.tensor([[1, 2], [3, 4]])
    assert [len(r.ids) for r in language_model().complete(ids, 3)] == [3, 3]
    bare = LanguageModel(tiny_model(), IdsOnly(96, (), "nothing reads text"))
    assert bare.complete(ids[0], 3).text is None
    with pytest.raises(GenerationError, match="nothing reads text"):
        bare.complete(ids[0], 3, stop="x")


def test_progress_of_a_long_prompt_is_told(monkeypatch):
    monkeypatch.setattr(decode_module, "PREFILL_CHUNK", 4)
    told = []
    language_model().generate("x" * 10, 2, progress=lambda *done: told.append(done))
    assert told == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"stop": ""}, "stop must be texts that are not empty"),
        ({"stop": ["a", 3]}, "stop must be texts"),
        ({"logprobs": -1}, "logprobs must be .* got -1"),
        ({"logprobs": True}, "logprobs must be"),
        ({"cache": "int4"}, "cache must be one of .* got 'int4'"),
        ({"speculative": 0}, "speculative must be .* got 0"),
        ({"speculative": 65}, "speculative must be .* got 65"),
        ({"min_p": 1.1}, "min_p must be"),
        ({"min_p": float("nan")}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be"),
    ],
)
def test_a_bad_option_is_refused_by_name(more, words):
    lm = language_model()
    for call in (lm.generate, lm.stream, lm.complete):
        with pytest.raises(GenerationError, match=words):
            call("x", 3, **more)


def test_an_unknown_option_is_an_error_with_the_known_ones():
    with pytest.raises(TypeError, match=r"'tok_k'; known are .*'min_p'"):
        language_model().generate("x", 3, tok_k=3)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "prompt is empty"),
        (["a", ""], "prompt is empty"),
        (["a", 3], "got a list with int at index 1"),
        (b"abc", "got bytes"),
        ({"a": 1}, "got dict"),
    ],
)
def test_a_bad_batch_is_refused(prompt, words):
    with pytest.raises(GenerationError, match=words):
        language_model().complete(prompt, 3)


def test_a_stream_is_of_one_text():
    with pytest.raises(GenerationError, match="one text or of ids, got list"):
        language_model().stream(["a", "b"], 3)


def test_the_longest_text_must_fit():
    lm = language_model(max_position_embeddings=20)
    with pytest.raises(GenerationError, match="21 tokens and the context only 20"):
        lm.generate(["a", "b" * 21])
    assert [len(r.ids) for r in lm.complete(["a", "b" * 15])] == [5, 5]


def test_without_a_chat_template_a_conversation_is_refused():
    with pytest.raises(GenerationError, match="no chat template"):
        language_model().chat_ids([{"role": "user", "content": "x"}])
