import dataclasses
import gzip
import json
import lzma
import shutil

import pytest

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.checkpoint import load_pretrained
from bitnet_torch.train import train
from bitnet_torch.train.card import RIVALS, make_card, publish, restore_float
from bitnet_torch.train.compression import compressed_bits_per_byte
from bitnet_torch.train.data import load_corpus
from tests.train.plays import tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    plays, folder = tmp_path_factory.mktemp("plays"), tmp_path_factory.mktemp("runs")
    for name, switch in (("packed", 12), ("twin", 24)):
        train(tiny_config(plays, folder / name, schedule={"qat_start": switch}))
    return folder


@pytest.fixture(scope="module")
def card(runs):
    return make_card(runs / "packed", runs / "twin", command="the command", preset="p.toml")


def test_the_card_holds_the_figures_of_both_runs_and_every_rival(card, runs):
    recorded = json.loads((runs / "packed" / "result.json").read_text())
    assert card.packed == recorded["held_out_bits_per_byte"]
    twin = json.loads((runs / "twin" / "result.json").read_text())
    assert card.twin == twin["held_out_bits_per_byte"]
    assert set(card.ternarised) == set(RIVALS)
    assert set(card.compressors) == {"gzip", "xz"}


def test_the_published_folder_loads_and_its_card_is_readable(card, runs, tmp_path):
    publish(card, runs / "packed", tmp_path / "shakespeare")
    names = {p.name for p in (tmp_path / "shakespeare").iterdir()}
    assert names == {"config.json", "model.safetensors", "card.json", "README.md", "curve.png"}
    load_pretrained(tmp_path / "shakespeare")
    written = json.loads((tmp_path / "shakespeare" / "card.json").read_text())
    assert written == dataclasses.asdict(card)
    text = (tmp_path / "shakespeare" / "README.md").read_text()
    for expected in (
        "the command",
        f"{card.packed:.3f}",
        f"{card.twin:.3f}",
        "gzip",
        "xz",
        "(best)",
    ):
        assert expected in text


def test_a_model_that_is_not_what_its_run_recorded_is_refused(runs, tmp_path):
    shutil.copytree(runs / "packed", tmp_path / "packed")
    path = tmp_path / "packed" / "result.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "held_out_bits_per_byte": 1.0}))
    with pytest.raises(CheckpointError, match=r"its run recorded 1\.0"):
        make_card(tmp_path / "packed", runs / "twin", command="", preset="")


def test_runs_that_are_no_twins_are_refused(runs, tmp_path):
    with pytest.raises(ConfigurationError, match="not in full precision throughout"):
        make_card(runs / "packed", runs / "packed", command="", preset="")
    with pytest.raises(ConfigurationError, match="is not finished"):
        make_card(tmp_path, runs / "twin", command="", preset="")


def test_a_run_without_checkpoints_cannot_be_restored(runs, tmp_path):
    shutil.copyfile(runs / "twin" / "result.json", tmp_path / "result.json")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        restore_float(tmp_path)


def test_compressors_are_measured_on_the_text_alone(tmp_path):
    config = tiny_config(tmp_path / "plays", tmp_path / "out")
    text = bytes(load_corpus(config.data).held_out.tolist())
    bits = compressed_bits_per_byte(text)
    assert bits["gzip"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert bits["xz"] == 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
