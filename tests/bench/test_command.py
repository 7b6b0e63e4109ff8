"""`bitnet bench` from outside, on sizes that take no time."""

import json

import pytest

from bitnet_torch.bench import limits, session
from bitnet_torch.bench.random_checkpoint import PRESETS, make_checkpoint
from bitnet_torch.bench.rows_file import append_rows, read_rows
from bitnet_torch.cli.main import main
from tests.bench.rows import make_row

FAST = ("--seconds", "0", "--threads", "1")
TINY_OPS = ("bench", "ops", "--layer", "32x16", "--tokens", "2", *FAST)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    """The real limits take seconds and are tested elsewhere."""
    monkeypatch.setattr(limits, "last_level_cache", lambda: 1 << 20)
    begin = session.begin
    monkeypatch.setattr(
        session, "begin", lambda effort, **where: begin(effort, attempts=1, **where)
    )


@pytest.fixture
def bitnet(capfd):
    def call(*arguments):
        capfd.readouterr()
        status = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return call


def test_ops_prints_a_table_and_writes_rows_and_a_picture(bitnet, tmp_path):
    out = tmp_path / "docs" / "bench"
    status, text, _ = bitnet(*TINY_OPS, "--only", "pack_codes", "--out", out)
    assert status == 0
    assert "pack_codes" in text
    assert "limits: memory" in text
    (lines,) = out.glob("*.jsonl")
    (picture,) = out.glob("*-ops.png")
    assert f"wrote {lines}" in text
    assert f"wrote {picture}" in text
    assert [row.subject.op for row in read_rows(lines)] == ["pack_codes"]


def test_json_is_one_object_with_every_row(bitnet, tmp_path):
    status, text, err = bitnet(*TINY_OPS, "--json", "--no-save")
    values = json.loads(text)
    assert status == 0
    assert values["files"] == []
    # A float sum has a bound, everything else has bits.
    assert all(row["verified"] == "bits" or "2^-24" in row["verified"] for row in values["rows"])
    assert {row["environment"]["threads"] for row in values["rows"]} == {1}
    assert all("without a case" in line for line in err.splitlines())


def test_model_and_memory_measure_a_made_checkpoint(bitnet, tmp_path):
    folder = tmp_path / "model"
    status, text, _ = bitnet("bench", "make-checkpoint", folder, "--preset", "tiny", "--layers", 1)
    assert (status, text.startswith(f"{folder}: 1 layers, ")) == (0, True)
    status, text, _ = bitnet("bench", "model", folder, "--prompt", 4, "--no-save", *FAST)
    assert status == 0
    assert "prefill" in text
    assert "tok/s" in text
    status, text, _ = bitnet("bench", "memory", folder, "--no-save", *FAST)
    assert status == 0
    assert "peak after generate" in text


def test_train_measures_a_step(bitnet):
    sizes = ("--hidden", "32", "--layers", "1", "--batch", "1", "--context", "8")
    status, text, _ = bitnet("bench", "train", *sizes, "--no-save", *FAST)
    assert status == 0
    assert "nn.Linear" in text
    assert "telemetry" in text


def test_make_checkpoint_takes_sizes_and_a_seed(bitnet, tmp_path):
    sizes = ("--hidden", "48", "--intermediate", "64", "--heads", "4", "--kv-heads", "2")
    status, text, _ = bitnet(
        *("bench", "make-checkpoint", tmp_path / "m", "--preset", "tiny", *sizes),
        *("--vocab", "100", "--context", "32", "--seed", "5", "--json"),
    )
    model = json.loads(text)["model"]
    assert status == 0
    assert (model["hidden_size"], model["head_dim"], model["vocab_size"]) == (48, 12, 100)
    assert PRESETS["tiny"].hidden_size == 64


def test_compare_ends_with_1_only_if_something_became_slower(bitnet, tmp_path):
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    append_rows(before, [make_row(50, ratio=2.0)])
    append_rows(after, [make_row(100, ratio=1.0)])
    status, text, _ = bitnet("bench", "compare", before, after)
    assert (status, text.startswith("slower   2.00x")) == (1, True)
    assert bitnet("bench", "compare", after, before)[0] == 0
    status, text, _ = bitnet("bench", "compare", before, after, "--json")
    assert (status, json.loads(text)["slower"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "--quick"), "'--quick'"),
        (("bench", "opps"), "'opps'"),
        (("bench", "ops", "--fast"), "'--fast'"),
        (("bench", "ops", "--layer", "25"), "must be like 2560x6912"),
        (("bench", "ops", "--layer", "0x8"), "must be like 2560x6912"),
        (("bench", "ops", "--buffers", "hot"), "'hot'"),
        (("bench", "ops", "--device", "mps"), "'mps'"),
        (("bench", "model"), "MODEL"),
        (("bench", "compare", "a"), "AFTER"),
        (("bench", "make-checkpoint"), "OUT"),
        (("bench", "make-checkpoint", "x", "--preset", "7b"), "'7b'"),
    ],
)
def test_bad_usage_is_one_line_with_status_2(bitnet, arguments, words):
    status, out, err = bitnet(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ops", "--only", "sort"), "'sort' has no case"),
        (("ops", "--tokens", "0"), "--tokens must be at least 1"),
        (("ops", "--threads", "0"), "--threads must be at least 1"),
        (("ops", "--device", "cuda", "--no-save"), "there is no CUDA device here"),
        (("ops", "--seconds", "-1"), "seconds must not be negative"),
        (("train", "--hidden", "0"), "sizes must be positive"),
        (("model", "/nowhere"), "does not exist"),
        (("memory", "/nowhere"), "does not exist"),
        (("compare", "/nowhere", "/nowhere"), "no such file"),
        (("make-checkpoint", "x", "--heads", "7"), "num_attention_heads"),
    ],
)
def test_an_error_is_one_line_with_status_1(bitnet, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, out, err = bitnet("bench", *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert words in err
    assert not list(tmp_path.iterdir())


def test_without_a_suite_the_help_is_shown_and_it_is_bad_usage(bitnet):
    status, out, err = bitnet("bench")
    assert (status, out) == (2, "")
    assert "make-checkpoint" in err


@pytest.mark.parametrize(
    "name",
    ["ops", "model", "peers", "sparse", "train", "memory", "tune", "compare", "make-checkpoint"],
)
def test_every_part_has_a_help_that_ends_with_an_example(bitnet, name):
    status, out, _ = bitnet("bench", name, "--help")
    assert status == 0
    assert out.rstrip().rpartition("example:\n")[2].strip().startswith(f"bitnet bench {name}")


def test_a_checkpoint_that_exists_is_refused(bitnet, tmp_path):
    make_checkpoint(tmp_path / "model", PRESETS["tiny"])
    status, _, err = bitnet("bench", "make-checkpoint", tmp_path / "model", "--preset", "tiny")
    assert status == 1
    assert "exists" in err
