import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models.rope_scaling import RopeScaling
from bitnet_torch.train.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from tests.train.plays import tiny_values

MINIMAL = """
[data]
files = "*.txt"
held_out = ["held.txt"]
context = 32
[model]
vocab_size = 256
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
[schedule]
steps = 10
qat_start = 5
warmup = 2
[run]
out = "runs/x"
"""
SECTIONS = {
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "run": RunConfig,
}

HEADS = "num_attention_heads * head_dim"
KEY_HEADS = "num_key_value_heads * head_dim"


def refusal_of(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        TrainConfig.from_toml(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_a_file_becomes_frozen_sections_with_documented_defaults(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    config = TrainConfig.from_toml(path)
    assert config.schedule == ScheduleConfig(steps=10, qat_start=5, warmup=2)
    assert config.optimizer == OptimizerConfig()
    assert config.data.held_out == ("held.txt",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run.seed = 3


def test_sections_survive_a_round_trip_through_plain_values(tmp_path):
    config = TrainConfig.from_dict(tiny_values(tmp_path / "plays", tmp_path / "out"))
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_a_misspelt_key_is_named_with_its_file_and_the_nearest_valid_key(tmp_path):
    message = refusal_of(tmp_path, MINIMAL + "[optimizer]\nlearning_rte = 1e-3\n")
    assert "'learning_rte' in [optimizer]" in message
    assert "'learning_rate'" in message


def test_an_unknown_section_is_named_with_the_nearest_valid_one(tmp_path):
    message = refusal_of(tmp_path, MINIMAL + "[optimiser]\neps = 1e-8\n")
    assert "section 'optimiser'" in message
    assert "'optimizer'" in message


@settings(deadline=None, max_examples=60)
@given(section=st.sampled_from([*SECTIONS, "model"]), key=st.text(max_size=12))
def test_no_unknown_key_is_ever_ignored(tmp_path_factory, section, key):
    values = tiny_values(tmp_path_factory.getbasetemp() / "plays", tmp_path_factory.getbasetemp())
    kind = SECTIONS.get(section, type(TrainConfig.from_dict(values).model))
    if key in {f.name for f in dataclasses.fields(kind)}:
        return
    values[section][key] = 1
    with pytest.raises(ConfigurationError) as caught:
        TrainConfig.from_dict(values)
    assert repr(key) in str(caught.value)
    assert caught.value.context["nearest"] in {f.name for f in dataclasses.fields(kind)}


def test_a_missing_required_key_is_named(tmp_path):
    message = refusal_of(tmp_path, MINIMAL.replace("steps = 10\n", ""))
    assert "[schedule] needs steps" in message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps = 10", "steps = true", "schedule.steps must be an integer, got True"),
        ("steps = 10", "steps = 10.0", "schedule.steps must be an integer, got 10.0"),
        ("steps = 10", 'steps = "10"', "schedule.steps must be an integer, got '10'"),
        ("steps = 10", "steps = 0", "schedule.steps must be at least 1, got 0"),
        ("warmup = 2", "warmup = 10", "schedule.warmup must lie in [0, steps=10), got 10"),
        ("qat_start = 5", "qat_start = -1", "schedule.qat_start must not be negative"),
        ("context = 32", "context = 1", "data.context must be at least 2, got 1"),
        ("context = 32", "context = 4096", "model.max_position_embeddings=2048, got 4096"),
        ('held_out = ["held.txt"]', "held_out = []", "data.held_out must name at least one"),
        ('held_out = ["held.txt"]', 'held_out = "held.txt"', "data.held_out must be an array"),
        ('files = "*.txt"', 'files = "*.txt"\ncleaning = "html"', "data.cleaning must be one of"),
        ("vocab_size = 256", "vocab_size = 255", "model.vocab_size must be 256, for the text"),
        ("vocab_size = 256", "vocab_size = 257", "bytes, got 257"),
        ("[run]", "[optimizer]\nlearning_rate = -1\n[run]", "optimizer.learning_rate must be"),
        ("[run]", "[optimizer]\nlearning_rate = inf\n[run]", "finite and above 0, got inf"),
        ("[run]", "[optimizer]\nbetas = [0.9, 1.0]\n[run]", "optimizer.betas must lie in [0, 1)"),
        ("[run]", "[optimizer]\nbetas = [0.9]\n[run]", "optimizer.betas must have 2 elements"),
        ("[run]", "[run]\nthreads = 0", "run.threads must be at least 1, got 0"),
        ("[run]", "[run]\nseed = -1", "run.seed must lie in [0, 2**63), got -1"),
        ("[data]", "run = 3\n[data]", "run"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(tmp_path, old, new, says):
    assert says in refusal_of(tmp_path, MINIMAL.replace(old, new, 1))


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ({"hidden_size": 30, "head_dim": 8}, "hidden_size", 30),
        ({"intermediate_size": 46}, "intermediate_size", 46),
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6}, HEADS, 18),
        ({"num_key_value_heads": 1, "head_dim": 6}, KEY_HEADS, 6),
    ],
)
def test_a_width_that_cannot_be_exported_is_refused_before_the_run(tmp_path, change, key, value):
    values = tiny_values(tmp_path / "plays", tmp_path / "out")
    values["model"] |= change
    with pytest.raises(ConfigurationError) as caught:
        TrainConfig.from_dict(values)
    assert f"model.{key} must be a multiple of 4" in str(caught.value)
    assert str(caught.value).endswith(f"got {value}")
    values["schedule"]["qat_start"] = values["schedule"]["steps"]
    assert TrainConfig.from_dict(values).model.hidden_size > 0


def test_a_file_that_is_not_toml_is_refused(tmp_path):
    assert "is not TOML" in refusal_of(tmp_path, "[data\n")


def test_an_absent_file_is_refused_by_name(tmp_path):
    path = tmp_path / "absent.toml"
    with pytest.raises(ConfigurationError, match=r"absent\.toml: cannot be read"):
        TrainConfig.from_toml(path)


def test_a_scaled_rotation_is_a_table_of_the_model(tmp_path):
    values = tiny_values(tmp_path / "plays", tmp_path / "out")
    values["model"]["rope_scaling"] = {"kind": "linear", "factor": 2}
    config = TrainConfig.from_dict(values)
    assert config.model.rope_scaling == RopeScaling("linear", 2.0)
    assert TrainConfig.from_dict(config.to_dict()) == config
    values["model"]["rope_scaling"] = {"kind": "linear", "faktor": 2}
    with pytest.raises(ConfigurationError, match=r"'faktor'.*'factor'"):
        TrainConfig.from_dict(values)
