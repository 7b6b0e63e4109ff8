"""`bitnet train`: a run from its file, and every refusal before anything is written."""

import json

import pytest

import bitnet_torch as bt

RUN = """
[data]
root = "{root}"
files = "*.txt"
held_out = ["held.txt"]
context = 16
batch = 2

[model]
vocab_size = 256
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 16

[schedule]
steps = 4
qat_start = 2
warmup = 1

[run]
out = "{out}"
checkpoint_every = 2
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.txt").write_text("To be, or not to be, that is the question.\n" * 3)
    (tmp_path / "held.txt").write_text("Whether 'tis nobler in the mind to suffer.\n")
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(root=tmp_path, out=tmp_path / "out"))
    return path


def test_a_run_leaves_a_model_that_generates(bitnet, config, tmp_path):
    ended = bitnet("train", "--config", config, "--json")
    shown = json.loads(ended.out)
    assert ended.status == 0
    assert shown["steps"] == 4
    assert shown == json.loads((tmp_path / "out" / "result.json").read_text())
    assert len(bt.load(shown["model"]).generate("To ", max_new_tokens=3)) > 0


def test_a_finished_run_is_not_overwritten_and_can_be_resumed(bitnet, config):
    first = bitnet("train", "--config", config)
    assert first.status == 0
    assert "bits/byte" in first.out
    assert "bitnet generate" in first.out
    assert bitnet("train", "--config", config).refused(1, "holds a run", "resume")
    assert bitnet("train", "--config", config, "--resume").status == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("warmup = 1", "warm_up = 1", ["'warm_up'", "'warmup'"]),
        ("[schedule]", "[scheduled]", ["'scheduled'", "'schedule'"]),
        ("batch = 2", "batch = 0", ["data.batch", "0"]),
        ("batch = 2", "batch = 'two'", ["data.batch", "'two'"]),
        ("hidden_size = 16", "hidden_size = 15", ["hidden_size", "15"]),
        ('"*.txt"', '"*.md"', ["*.md"]),
        ("[data]", "[data", ["TOML"]),
        ("context = 16", "context = 17", ["data.context", "17"]),
    ],
)
def test_a_wrong_setting_is_one_line_and_writes_nothing(bitnet, config, tmp_path, old, new, words):
    config.write_text(config.read_text().replace(old, new, 1))
    assert bitnet("train", "--config", config).refused(1, *words)
    assert not (tmp_path / "out").exists()


def test_an_absent_configuration_is_named(bitnet, tmp_path):
    assert bitnet("train", "--config", tmp_path / "absent").refused(1, str(tmp_path / "absent"))


def test_a_folder_instead_of_a_configuration_is_named(bitnet, tmp_path):
    assert bitnet("train", "--config", tmp_path).refused(1, str(tmp_path), "directory")


def test_an_output_that_cannot_be_written_is_one_line(bitnet, config, tmp_path):
    (tmp_path / "out").write_text("a file is in the way")
    assert bitnet("train", "--config", config).refused(1, str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "a file is in the way"
