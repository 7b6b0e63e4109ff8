import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import GenerationError
from bitnet_torch.io import ByteTokenizer
from bitnet_torch.io.tokenizer import IdsOnly


@settings(deadline=None)
@given(st.text())
def test_any_text_survives(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_survive_as_python_hands_them_over(raw):
    assert bytes(ByteTokenizer().encode(raw.decode("utf-8", "surrogateescape"))) == raw


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 20)))
def test_a_stream_gives_the_text_of_the_whole_in_whole_characters(raw, cuts):
    tokenizer = ByteTokenizer()
    edges = sorted({0, len(raw), *(min(cut, len(raw)) for cut in cuts)})
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(list(raw[a:b])) for a, b in itertools.pairwise(edges)]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(list(raw))


def test_a_character_is_held_back_until_its_last_byte():
    stream = ByteTokenizer().stream_decoder()
    assert [stream.push([byte]) for byte in "é€😀".encode()] == [
        *("", "é"),
        *("", "", "€"),
        *("", "", "", "😀"),
    ]
    assert stream.push([0xE2, 0x82]) == ""
    assert stream.finish() == "\ufffd"


def test_a_surrogate_that_stands_for_no_byte_is_named():
    with pytest.raises(GenerationError, match=r"U\+D800 at index 2"):
        ByteTokenizer().encode("ab\ud800")


def test_an_id_that_is_no_byte_is_named():
    with pytest.raises(GenerationError, match="id 256 at index 1"):
        ByteTokenizer().decode([0, 256])


def test_without_a_tokenizer_text_is_refused_with_the_reason():
    tokenizer = IdsOnly(100, (2,), "folder x names no tokenizer")
    for use in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1])):
        with pytest.raises(GenerationError, match="x names no tokenizer; give input_ids"):
            use()
    with pytest.raises(GenerationError, match="give input_ids"):
        tokenizer.stream_decoder()
