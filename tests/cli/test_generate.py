"""`bitnet generate`: text as the library makes it, and every bad input in one line."""

import io
import json
import shutil
import sys

import pytest

import bitnet_torch as bt
from bitnet_torch.cli.main import main
from bitnet_torch.models import CausalLM
from bitnet_torch.ops.compilation import note
from tests.cli.conftest import CONTEXT


def test_the_text_is_that_of_the_library(bitnet, checkpoint):
    ended = bitnet(
        "generate", checkpoint, "O,", "--max-new-tokens", 20, "--temperature", 1, "--seed", 3
    )
    expected = bt.load(checkpoint).generate("O,", max_new_tokens=20, temperature=1.0, seed=3)
    assert (ended.status, ended.out, ended.err) == (0, expected + "\n", "")


def test_without_a_limit_the_context_is_filled(bitnet, checkpoint):
    made = json.loads(bitnet("generate", checkpoint, "O,", "--json").out)
    assert made["prompt_tokens"] + made["new_tokens"] == CONTEXT
    assert made["seconds"] > 0
    assert made["tokens_per_second"] == made["new_tokens"] / made["seconds"]


def test_what_was_compiled_first_is_said_on_stderr_and_in_json(bitnet, checkpoint, monkeypatch):
    forward = CausalLM.next_logits

    def compiling(*arguments):
        note("kernel", 0.75)
        return forward(*arguments)

    monkeypatch.setattr(CausalLM, "next_logits", compiling)
    arguments = ["generate", checkpoint, "O,", "--max-new-tokens", 2]
    assert bitnet(*arguments).err.startswith("bitnet: compiled 2 kernels in 1.5 s")
    made = json.loads(bitnet(*arguments, "--json").out)
    assert (made["kernels_compiled"], made["compile_seconds"]) == (2, 1.5)


def test_json_is_one_object_with_the_streamed_text(bitnet, checkpoint):
    arguments = ["generate", checkpoint, "O,", "--max-new-tokens", 9, "--top-k", 5, "--top-p", 0.9]
    sampled = [*arguments, "--temperature", 2, "--seed", 1]
    made = json.loads(bitnet(*sampled, "--json").out)
    assert made["text"] + "\n" == bitnet(*sampled).out
    assert made["device"] == "cpu"
    assert made["seed"] == 1


def test_a_dash_reads_the_prompt_from_stdin_as_bytes(bitnet, checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xe2\x82\xac")))
    made = json.loads(bitnet("generate", checkpoint, "-", "--max-new-tokens", 3, "--json").out)
    assert made["prompt_tokens"] == 4
    assert made["prompt"] == "\udcff\u20ac"


def test_argument_bytes_that_are_not_utf8_are_bytes(process, checkpoint):
    odd = b"\xff\xfe".decode("utf-8", "surrogateescape")
    running = process("generate", checkpoint, odd, "--max-new-tokens", "2", "--json")
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, b"")
    assert json.loads(out)["prompt_tokens"] == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_text_that_stdout_cannot_encode_is_shown_as_question_marks(
    checkpoint, monkeypatch, encoding
):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, newline=""))
    sampled = ["--max-new-tokens", "12", "--temperature", "1", "--seed", "3"]
    assert main(["generate", str(checkpoint), "h\u00e9", *sampled]) == 0
    text = bt.load(checkpoint).generate("h\u00e9", 12, temperature=1.0, seed=3)
    assert "\ufffd" in text
    assert written.getvalue() == (text + "\n").encode(encoding, "replace")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], ["prompt is empty"]),
        (["x" * CONTEXT], [f"{CONTEXT} tokens", f"context only {CONTEXT}"]),
        (["x", "--max-new-tokens", CONTEXT], [f"at most {CONTEXT - 1} new tokens"]),
        (["x", "--max-new-tokens", 0], ["max_new_tokens", "0"]),
        (["x", "--temperature", -1], ["temperature", "-1"]),
        (["x", "--temperature", "nan"], ["temperature", "nan"]),
        (["x", "--top-k", 0], ["top_k", "0"]),
        (["x", "--top-p", 2], ["top_p", "2"]),
        (["x", "--seed", -1], ["seed", "-1"]),
        (["\ud800"], ["U+D800", "index 0"]),
        (["x", "--device", "moon"], ["'moon'"]),
        (["x", "--dtype", "float16"], ["float16", "relu2"]),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_text(bitnet, checkpoint, arguments, words):
    assert bitnet("generate", checkpoint, *arguments).refused(1, *words)


def test_a_folder_that_is_absent_is_named(bitnet, tmp_path):
    assert bitnet("generate", tmp_path / "absent", "x").refused(1, str(tmp_path / "absent"))


def test_a_file_instead_of_a_folder_is_named(bitnet, checkpoint):
    file = checkpoint / "config.json"
    assert bitnet("generate", file, "x").refused(1, str(file), "not a folder")


@pytest.fixture
def damaged(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "damaged")


@pytest.mark.parametrize("kept", [0, 7, 100, 4000, -1])
def test_truncated_weights_are_refused_in_one_line(bitnet, damaged, kept):
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert bitnet("generate", damaged, "x").refused(1, str(file))


def test_corrupt_codes_are_refused_in_one_line(bitnet, damaged):
    file = damaged / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + header])
    start, end = tensors["model.layers.0.mlp.down_proj.weight"]["data_offsets"]
    content[8 + header + start : 8 + header + end] = b"\xff" * (end - start)
    file.write_bytes(content)
    assert bitnet("generate", damaged, "x").refused(1, str(file), "down_proj")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_configuration_is_refused_in_one_line(bitnet, damaged, text):
    (damaged / "config.json").write_text(text)
    assert bitnet("generate", damaged, "x").refused(1, str(damaged / "config.json"))


def test_every_option_reaches_the_library(bitnet, checkpoint):
    more = {"min_p": 0.01, "repetition_penalty": 1.2, "cache": "int8", "stop": ["q", "zz"]}
    flags = ["--min-p", 0.01, "--repetition-penalty", 1.2, "--cache", "int8", "--stop", "q"]
    arguments = ["O,", "--max-new-tokens", 30, "--temperature", 1, "--seed", 3, "--json"]
    made = bitnet("generate", checkpoint, *arguments, *flags, "--stop", "zz", "--logprobs", 2)
    expected = bt.load(checkpoint).complete("O,", 30, temperature=1.0, seed=3, logprobs=2, **more)
    figures = json.loads(made.out)
    assert figures["text"] == expected.text
    assert figures["finish_reason"] == expected.finish_reason
    logprobs = json.loads(json.dumps(expected.to_dict()["logprobs"]))
    assert figures["logprobs"] == logprobs


def test_guessing_reports_tokens_per_pass_and_changes_no_text(bitnet, checkpoint):
    plain = bitnet("generate", checkpoint, "abcabcabc", "--max-new-tokens", 30)
    ended = bitnet("generate", checkpoint, "abcabcabc", "--max-new-tokens", 30, "--speculative")
    assert ended.out == plain.out
    assert "tokens per pass" in ended.err
    arguments = ["generate", checkpoint, "abcabc", "--max-new-tokens", 30, "--json"]
    made = json.loads(bitnet(*arguments, "--speculative", 4).out)
    assert made["tokens_per_pass"] >= 1
    assert made["accepted"] <= made["proposed"]


def test_log_probabilities_without_json_are_refused(bitnet, checkpoint):
    assert bitnet("generate", checkpoint, "x", "--logprobs", 1).refused(1, "--logprobs", "--json")
