"""`bitnet eval`: the library's figure for the file's very bytes."""

import json

import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.train import bits_per_byte
from tests.cli.conftest import CONTEXT

TEXT = "O Romeo, Romeo! wherefore art thou Romeo? \u2014 ".encode() * 5 + b"\xff\xfe\r\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.md"
    path.write_bytes(TEXT)
    return path


def test_the_figure_is_that_of_the_bytes_whatever_they_are(bitnet, checkpoint, text):
    ended = bitnet("eval", checkpoint, "--text", text, "--json")
    shown = json.loads(ended.out)
    expected = bits_per_byte(
        bt.load(checkpoint).model, torch.tensor(list(TEXT)), CONTEXT, CONTEXT // 2
    )
    assert (ended.status, ended.err) == (0, "")
    assert shown["bits_per_byte"] == expected
    assert shown["perplexity"] == 2.0**expected
    assert shown["bytes"] == shown["tokens"] == len(TEXT)


def test_the_text_form_has_the_same_figure(bitnet, checkpoint, text):
    arguments = ["eval", checkpoint, "--text", text, "--context", 16, "--stride", 4]
    shown = json.loads(bitnet(*arguments, "--json").out)
    ended = bitnet(*arguments)
    assert ended.out.startswith(f"{shown['bits_per_byte']:.4f} bits/byte")
    assert "context 16, stride 4" in ended.out


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "is empty"), (b"x", "1 token")], ids=["empty", "one byte"]
)
def test_a_text_with_nothing_to_predict_is_refused(bitnet, checkpoint, tmp_path, content, word):
    path = tmp_path / "short"
    path.write_bytes(content)
    assert bitnet("eval", checkpoint, "--text", path).refused(1, str(path), word)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--context", CONTEXT + 1], ["--context", str(CONTEXT)]),
        (["--context", 0], ["--context", "0"]),
        (["--stride", 0], ["stride=0"]),
        (["--context", 8, "--stride", 9], ["context=8", "stride=9"]),
    ],
)
def test_windows_that_do_not_fit_are_refused(bitnet, checkpoint, text, flags, words):
    assert bitnet("eval", checkpoint, "--text", text, *flags).refused(1, *words)


def test_an_absent_file_is_named(bitnet, checkpoint, tmp_path):
    path = tmp_path / "absent"
    assert bitnet("eval", checkpoint, "--text", path).refused(1, str(path), "No such file")


def test_a_folder_instead_of_a_file_is_named(bitnet, checkpoint, tmp_path):
    assert bitnet("eval", checkpoint, "--text", tmp_path).refused(1, str(tmp_path), "directory")
