import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitnet_torch.errors import ConfigurationError, DTypeError, GenerationError, ShapeError
from bitnet_torch.generate import LanguageModel
from bitnet_torch.generate import decode as decode_module
from bitnet_torch.io import ByteTokenizer
from bitnet_torch.io.tokenizer import IdsOnly
from bitnet_torch.nn import BitLinear
from tests.models.tiny import rounding_bound, tiny_model


def language_model(linear=BitLinear, eos_ids=(), **changes):
    return LanguageModel(tiny_model(linear, vocab_size=256, **changes), ByteTokenizer(eos_ids))


@torch.no_grad()
def greedy_by_full_forwards(model, ids, steps):
    """Return the greedy continuation and the smallest margin of its choices."""
    margin = float("inf")
    for _ in range(steps):
        best = model(ids)[:, -1].topk(2)
        margin = min(margin, (best.values[:, 0] - best.values[:, 1]).min().item())
        ids = torch.cat((ids, best.indices[:, :1]), 1)
    return ids, margin


def test_greedy_generation_is_the_argmax_of_the_full_forward():
    lm = language_model(nn.Linear)
    ids = torch.randint(256, (2, 9))
    expected, margin = greedy_by_full_forwards(lm.model, ids, 30)
    # The test's own premise: no choice is closer than two evaluations may differ.
    assert margin > 2 * rounding_bound(lm.model, lm.model(expected))
    assert torch.equal(lm.generate(ids, 30), expected)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_the_size_of_prefill_chunks_does_not_matter(chunk, monkeypatch):
    lm = language_model(nn.Linear)
    ids = torch.randint(256, (2, 9))
    expected = lm.generate(ids, 10)
    monkeypatch.setattr(decode_module, "PREFILL_CHUNK", chunk)
    assert torch.equal(lm.generate(ids, 10), expected)


# A chunk below the padding: then chunks after the first are padding, too.
@pytest.mark.parametrize("chunk", [4, 512])
def test_a_padded_prompt_continues_as_it_does_alone(chunk, monkeypatch):
    monkeypatch.setattr(decode_module, "PREFILL_CHUNK", chunk)
    lm = language_model(nn.Linear)
    ids, mask = torch.randint(256, (3, 12)), torch.ones(3, 12, dtype=torch.int64)
    mask[1, :5] = 0
    mask[2, :11] = 0
    together = lm.generate(ids, 20, attention_mask=mask)
    for row, padding in enumerate((0, 5, 11)):
        alone = lm.generate(ids[row, padding:], 20)
        assert torch.equal(together[row, padding:], alone)


SETTINGS = [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.7, "top_k": 20, "seed": 5}]


@pytest.mark.parametrize("how", [*SETTINGS, {"temperature": 1.3, "top_p": 0.8, "seed": 5}])
def test_text_is_the_same_every_time_and_streamed(how):
    lm = language_model()
    text = lm.generate("To be, or not", 40, **how)
    assert isinstance(text, str)
    assert lm.generate("To be, or not", 40, **how) == text
    assert "".join(lm.stream("To be, or not", 40, **how)) == text
    ids = torch.tensor(list(b"To be, or not"))
    out = lm.generate(ids, 40, **how)
    assert out.shape == (53,)
    assert torch.equal(out[:13], ids)
    assert ByteTokenizer().decode(out[13:].tolist()) == text
    assert torch.equal(torch.stack(list(lm.stream(ids, 40, **how))), out[13:])


def test_another_seed_gives_another_text():
    lm = language_model()
    texts = {lm.generate("a", 30, temperature=1.0, seed=seed) for seed in range(4)}
    assert len(texts) == 4


@settings(deadline=None, max_examples=25)
@given(st.binary(min_size=1, max_size=20))
def test_any_bytes_are_a_prompt(raw):
    lm = language_model(num_hidden_layers=1)
    pieces = list(lm.stream(raw.decode("utf-8", "surrogateescape"), 12, temperature=1.0, seed=1))
    assert all(pieces)
    "".join(pieces).encode("utf-8")


def says(lm, text, monkeypatch):
    """Make the model say ``text``, whatever it is given."""
    said = iter(text)

    def next_logits(ids, mask, cache):
        logits = torch.zeros(ids.shape[0], 256)
        logits[:, next(said)] = 1.0
        return logits

    monkeypatch.setattr(lm.model, "next_logits", next_logits)


def test_a_stream_never_splits_a_character(monkeypatch):
    lm = language_model()
    says(lm, "né€😀".encode() + b"\xe2\x82", monkeypatch)
    assert list(lm.stream("x", 12)) == ["n", "é", "€", "😀", "\ufffd"]


def test_generation_ends_at_an_end_id_which_is_no_text(monkeypatch):
    lm = language_model(eos_ids=(10,))
    says(lm, b"ab\ncd", monkeypatch)
    assert lm.generate("x", 5) == "ab"
    says(lm, b"ab\ncd", monkeypatch)
    assert lm.generate(torch.tensor([[1]]), 5).tolist() == [[1, 97, 98, 10]]


def test_a_sequence_that_ended_is_filled_with_its_end_id(monkeypatch):
    lm = language_model(eos_ids=(10, 11))
    said = iter([[97, 11], [98, 99], [10, 99], [97, 97]])

    def next_logits(ids, mask, cache):
        return nn.functional.one_hot(torch.tensor(next(said)), 256).float()

    monkeypatch.setattr(lm.model, "next_logits", next_logits)
    out = lm.generate(torch.zeros(2, 1, dtype=torch.int64), 4)
    assert out.tolist() == [[0, 97, 98, 10], [0, 11, 11, 11]]


def test_without_a_number_generation_goes_to_the_end_of_the_context():
    lm = language_model(max_position_embeddings=20)
    assert lm.generate(torch.zeros(7, dtype=torch.int64)).shape == (20,)
    assert lm.generate(torch.zeros(7, dtype=torch.int64), 13).shape == (20,)


def test_what_does_not_fit_the_context_is_refused_with_the_numbers():
    lm = language_model(max_position_embeddings=20)
    with pytest.raises(GenerationError, match="21 tokens and the context only 20"):
        lm.generate("x" * 21)
    with pytest.raises(GenerationError, match="20 tokens and the context only 20"):
        lm.stream("x" * 20, 1)
    with pytest.raises(GenerationError, match=r"of 7 tokens and 14 new ones .* at most 13"):
        lm.generate("x" * 7, 14)


def test_bad_prompts_are_refused_before_anything_is_computed():
    lm = language_model()
    ids = torch.zeros(2, 4, dtype=torch.int64)
    for call in (lm.generate, lm.stream):
        with pytest.raises(GenerationError, match="prompt is empty"):
            call("")
        with pytest.raises(GenerationError, match="prompt is empty"):
            call(ids[:, :0])
        with pytest.raises(GenerationError, match=r"input_ids\[1, 2\] is 256; .* \[0, 256\)"):
            call(ids + torch.tensor([[0] * 4, [0, 0, 256, 0]]))
        with pytest.raises(
            GenerationError, match=r"got a list with int at index 0|stream is of one text"
        ):
            call([1, 2])
        with pytest.raises(DTypeError, match=r"input_ids must be integers, got torch.float32"):
            call(ids.float())
        with pytest.raises(ShapeError, match=r"\(T,\) or \(B, T\), got \(1, 2, 4\)"):
            call(ids[None])
        with pytest.raises(GenerationError, match=r"max_new_tokens must be .* got 0"):
            call(ids, 0)
        with pytest.raises(GenerationError, match="temperature must be"):
            call("x", 3, temperature=-1.0)
        with pytest.raises(ShapeError, match=r"\(2, 4\), got \(1, 4\)"):
            call(ids, attention_mask=torch.ones(1, 4, dtype=torch.int64))
        with pytest.raises(DTypeError, match=r"attention_mask .* got torch.float32"):
            call(ids, attention_mask=torch.ones(2, 4))
        with pytest.raises(GenerationError, match="ends in padding"):
            call(ids, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
        with pytest.raises(GenerationError, match="goes with ids, not with text"):
            call("x", attention_mask=torch.ones(1, 1, dtype=torch.int64))


def test_ids_may_be_given_by_name_and_exactly_one_prompt_is_taken():
    lm = language_model()
    ids, mask = torch.randint(256, (2, 4)), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    expected = lm.generate(ids, 3, attention_mask=mask)
    named = lm.generate(input_ids=ids, max_new_tokens=3, attention_mask=mask)
    assert torch.equal(named, expected)
    streamed = torch.stack(list(lm.stream(input_ids=ids[0], max_new_tokens=3)))
    assert torch.equal(streamed, expected[0, 4:])
    for call in (lm.generate, lm.stream):
        with pytest.raises(GenerationError, match="got neither"):
            call(max_new_tokens=3)
        with pytest.raises(GenerationError, match="got both"):
            call("text", 3, input_ids=ids)
        with pytest.raises(GenerationError, match="must be a Tensor, got str"):
            call(input_ids="text")


def test_a_model_without_a_tokenizer_takes_ids_only():
    lm = LanguageModel(tiny_model(), IdsOnly(96, (), "the folder names no tokenizer"))
    assert lm.generate(torch.tensor([1, 2]), 3).shape == (5,)
    with pytest.raises(GenerationError, match="names no tokenizer; give input_ids"):
        lm.generate("text")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    with pytest.raises(ConfigurationError, match="256 ids, the model only 96"):
        LanguageModel(tiny_model(), ByteTokenizer())


def test_an_interrupt_passes_and_the_model_goes_on_working():
    lm = language_model()
    expected = lm.generate("abc", 10)
    hook = lm.model.model.layers[1].register_forward_pre_hook(_interrupt)
    stream = lm.stream("abc", 10)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    hook.remove()
    assert not torch.is_inference_mode_enabled()
    assert lm.generate("abc", 10) == expected


def _interrupt(module, args):
    raise KeyboardInterrupt


def test_between_two_tokens_the_caller_is_not_in_inference_mode():
    lm = language_model()
    for _ in lm.stream("abc", 3):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    loss = lm.model(torch.zeros(1, 3, dtype=torch.int64)).sum()
    loss.backward()


def test_generation_in_bfloat16_works():
    lm = language_model(dtype=torch.bfloat16)
    assert lm.generate("abc", 10) == lm.generate("abc", 10)


def test_ids_that_the_tokenizer_does_not_know_are_generated_and_streamed_all_the_same():
    # Embeddings are padded to a round size, so a model may choose an id beyond the tokenizer's.
    lm = LanguageModel(tiny_model(vocab_size=400), ByteTokenizer())
    with torch.no_grad():
        lm.model.lm_head.weight[:256] = 0
    prompt = torch.tensor([1, 2, 3])
    new = lm.generate(prompt, max_new_tokens=4)[3:]
    assert bool((new >= 256).all())
    assert [int(i) for i in lm.stream(prompt, max_new_tokens=4)] == new.tolist()
