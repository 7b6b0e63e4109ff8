"""The comparison of training with ternarising runs on a tiny preset, from nothing and again."""

import json
import re
import sys

import pytest

from bitnet_torch.train.ternarise import DATA_FREE, METHODS
from tests.examples.scripts import EXAMPLES, script
from tests.train.plays import tiny_values

RECORD = json.loads((EXAMPLES / "results" / "shakespeare-ptq.json").read_text())


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script on a preset of 24 steps; return its module, its record, its words."""
    values = tiny_values(tmp_path / "plays", tmp_path / "runs")
    preset = (EXAMPLES / "presets" / "shakespeare-ptq.toml").read_text()
    preset = re.sub(r"(?m)^head_dim = .*\n", "", preset)
    for section in values.values():
        for key, value in section.items():
            if key != "keep_checkpoints":
                line = f"{key} = {json.dumps(value)}"
                preset = re.sub(rf"(?m)^{key} = .*$", line.replace("\\", r"\\"), preset)
    (tmp_path / "preset.toml").write_text(preset)
    module = script("qat_against_ptq")
    monkeypatch.setattr(module, "PRESET", tmp_path / "preset.toml")
    monkeypatch.setattr(module, "GROUP", 8)
    monkeypatch.setattr(module, "CALIBRATION_BATCHES", 2)
    monkeypatch.setattr(sys, "argv", ["qat_against_ptq.py", "--threads", "1"])

    module.main()
    record = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    return module, record, capsys.readouterr().out


def test_both_runs_share_their_start_and_every_rule_is_measured(run, tmp_path, capsys, monkeypatch):
    module, record, said = run
    assert f"{record['qat']:.4f}" in said
    measured = {(r["method"], r["granularity"]) for r in record["ternarised"]}
    assert measured >= {(m, g) for m in DATA_FREE for g in ("matrix", "row")}
    assert {m for m, _ in measured} == set(METHODS)
    ternary, plain = (
        json.loads((tmp_path / "runs" / name / "result.json").read_text())
        for name in ("ternary", "float")
    )
    assert (ternary["form"], plain["form"]) == ("packed", "float")
    rows = [(tmp_path / "runs" / n / "metrics.jsonl").read_text() for n in ("ternary", "float")]
    first, second = ([json.loads(line) for line in text.splitlines()] for text in rows)
    assert [r for r in first if r["step"] <= 12] == [r for r in second if r["step"] <= 12]
    assert [r for r in first if r["step"] > 12] != [r for r in second if r["step"] > 12]
    assert (tmp_path / "runs" / "comparison.png").stat().st_size > 1000

    def not_again(*_arguments, **_settings):
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(module, "train", not_again)
    module.run_both(module.TrainConfig.from_toml(module.PRESET))


def test_the_committed_comparison_shows_what_training_is_for():
    best = script("qat_against_ptq").best_data_free(RECORD)
    assert RECORD["held_out_bytes"] == 272_517
    assert RECORD["qat"] <= RECORD["float"] + 0.08
    assert RECORD["qat"] <= best - 0.2
    assert {r["method"] for r in RECORD["ternarised"]} == set(METHODS)


def test_the_committed_comparison_is_of_the_preset_that_is_here():
    config = (
        script("qat_against_ptq")
        .TrainConfig.from_toml(EXAMPLES / "presets" / "shakespeare-ptq.toml")
        .to_dict()
    )
    for section, values in RECORD["config"].items():
        kept = {k: v for k, v in values.items() if k not in ("root", "out", "threads")}
        assert {k: v for k, v in config[section].items() if k in kept} == kept, section
