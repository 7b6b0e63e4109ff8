"""Tokenizers with a vocabulary: what goes in comes out, whole or streamed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import GenerationError
from bitnet_torch.io.tokenizer_text import TextTokenizer
from tests.io.vocabularies import KINDS, vocabulary

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
ALL = {kind: TextTokenizer(vocabulary(kind)) for kind in KINDS}


@EVERY_KIND
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_stream_gives_the_text_of_the_whole(kind, data):
    tokenizer = ALL[kind]
    # Any ids: incomplete characters, broken byte runs, special tokens, ids of nothing.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=60))
    cuts = data.draw(st.lists(st.integers(0, 60), max_size=10))
    edges = sorted({0, len(ids), *(min(cut, len(ids)) for cut in cuts)})
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(ids[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids)


@EVERY_KIND
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_runs_of_bytes_and_spaces_are_streamed_as_the_whole(kind, data):
    tokenizer = ALL[kind]
    names = [f"<0x{b:02X}>" for b in "é€😀".encode()] + ["▁", "<s>", "▁the", "Ġ", "a", "Ã"]
    known = [i for i in map(tokenizer.vocabulary.token_to_id, names) if i is not None]
    ids = data.draw(st.lists(st.sampled_from(known), max_size=60))
    stream = tokenizer.stream_decoder()
    pieces = [stream.push([i]) for i in ids]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids)


@EVERY_KIND
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_decoding_is_that_of_the_library(kind, data):
    tokenizer = ALL[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert tokenizer.decode(ids) == tokenizer.vocabulary.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_survives(kind, text):
    # The text of an added token is that token, and SentencePiece reads its own space as one.
    if "<" in text or "▁" in text:
        return
    assert ALL[kind].decode(ALL[kind].encode(text)) == text


@EVERY_KIND
def test_a_long_stream_is_the_whole(kind):
    tokenizer = ALL[kind]
    text = "To be, or not to be: café, naïve, 😀😀 and so on. " * 40
    ids = tokenizer.encode(text)
    stream = tokenizer.stream_decoder()
    pieces = [stream.push([i]) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    # Streaming shows most of it as it comes, not at the end.
    assert sum(map(bool, pieces)) > len(ids) // 3


def test_a_character_of_several_tokens_is_held_back_until_it_is_whole():
    tokenizer = ALL["byte_level"]
    stream = tokenizer.stream_decoder()
    pieces = [stream.push([i]) for i in tokenizer.encode("€", special=False)]
    assert pieces == ["", "", "€"]


def test_a_run_of_byte_tokens_is_held_back_until_it_ends():
    tokenizer = ALL["byte_fallback"]
    ids = [tokenizer.vocabulary.token_to_id(f"<0x{b:02X}>") for b in "€".encode()]
    stream = tokenizer.stream_decoder()
    assert stream.push(ids) == ""
    assert stream.push([tokenizer.vocabulary.token_to_id("a")]) == "€a"
    # The library shows a run that is not UTF-8 as one replacement character for each byte.
    assert tokenizer.decode([*ids, ids[0]]) == "\ufffd" * 4


@EVERY_KIND
def test_what_the_post_processor_adds_is_added_unless_it_is_there(kind):
    tokenizer = ALL[kind]
    bos = tokenizer.vocabulary.token_to_id("<s>")
    assert tokenizer.encode("the king") == [bos, *tokenizer.encode("the king", special=False)]
    assert bos not in tokenizer.encode("the king", special=False)


@EVERY_KIND
def test_special_tokens_in_a_text_are_tokens_and_are_no_text(kind):
    tokenizer = ALL[kind]
    ids = tokenizer.encode("the<|eot|><tool>", special=False)
    assert tokenizer.vocabulary.token_to_id("<|eot|>") in ids
    assert tokenizer.vocabulary.token_to_id("<tool>") in ids
    decoded = tokenizer.decode(ids)
    assert "<|eot|>" not in decoded
    assert "<tool>" in decoded


def test_truncation_and_padding_of_the_file_are_not_done():
    inner = vocabulary("byte_level")
    inner.enable_truncation(3)
    inner.enable_padding(length=10)
    assert len(TextTokenizer(inner).encode("the king and the queen")) > 10
    assert len(TextTokenizer(inner).encode("a", special=False)) == 1


def test_a_lone_surrogate_is_named():
    with pytest.raises(GenerationError, match=r"U\+DC80 at index 2"):
        ALL["byte_level"].encode("ab\udc80")


@pytest.mark.parametrize("token", [-1, 1 << 32])
def test_an_id_that_no_vocabulary_can_have_is_named(token):
    with pytest.raises(GenerationError, match=f"id {token} is not in"):
        ALL["byte_level"].decode([1, token])


def test_the_size_counts_gaps():
    inner = vocabulary("byte_level")
    assert TextTokenizer(inner).vocab_size == inner.get_vocab_size()
