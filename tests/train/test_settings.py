import pytest
import torch

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.train import finish, trainer
from bitnet_torch.train.settings import matmul_precision, threads
from tests.train.plays import tiny_config


def test_settings_are_changed_inside_the_block_and_put_back_even_after_an_error():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def fail():
        with threads(1), matmul_precision("medium"):
            assert torch.get_num_threads() == 1
            assert torch.get_float32_matmul_precision() == "medium"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"run\.matmul_precision must be one of.*'low'"):
        tiny_config(tmp_path / "plays", tmp_path / "out", run={"matmul_precision": "low"})


def test_training_has_the_precision_asked_for_and_the_final_figure_the_highest(
    tmp_path, monkeypatch
):
    seen = {"training": set(), "final": set()}

    def spy(name, original):
        def call(*args, **kwargs):
            seen[name].add(torch.get_float32_matmul_precision())
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(trainer, "_loss", spy("training", trainer._loss))
    monkeypatch.setattr(finish, "bits_per_byte", spy("final", finish.bits_per_byte))
    config = tiny_config(tmp_path / "plays", tmp_path / "out", run={"matmul_precision": "medium"})
    trainer.train(config)
    assert seen == {"training": {"medium"}, "final": {"highest"}}
