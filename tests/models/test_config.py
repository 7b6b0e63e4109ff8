import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models import ModelConfig
from tests.models.tiny import tiny_config

REQUIRED = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@st.composite
def configs(draw):
    kv = draw(st.integers(1, 4))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 1000)),
        hidden_size=draw(st.integers(1, 64)),
        intermediate_size=draw(st.integers(1, 64)),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=kv * draw(st.integers(1, 4)),
        num_key_value_heads=kv,
        head_dim=2 * draw(st.integers(1, 16)),
        max_position_embeddings=draw(st.integers(1, 4096)),
        rope_theta=draw(st.floats(1.0, 1e7)),
        rms_norm_eps=draw(st.floats(1e-8, 1e-3)),
        hidden_act=draw(st.sampled_from(["relu2", "silu"])),
        tie_word_embeddings=draw(st.booleans()),
        attn_sub_norm=draw(st.booleans()),
        ffn_sub_norm=draw(st.booleans()),
    )


@settings(deadline=None)
@given(configs())
def test_a_configuration_survives_its_dictionary(config):
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_absent_head_settings_are_derived():
    config = ModelConfig.from_dict({**REQUIRED, "head_dim": None, "num_key_value_heads": None})
    assert (config.head_dim, config.num_key_value_heads) == (4, 2)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().vocab_size = 3


def test_an_unknown_key_is_named():
    with pytest.raises(ConfigurationError, match="'hidden_sise'"):
        ModelConfig.from_dict({**REQUIRED, "hidden_sise": 8})


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_key_is_named(name):
    with pytest.raises(ConfigurationError, match=f"'{name}' is missing"):
        ModelConfig.from_dict({k: v for k, v in REQUIRED.items() if k != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", 1 << 25),
        ("hidden_size", -1),
        ("hidden_size", 8.0),
        ("hidden_size", "8"),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", True),
        ("num_attention_heads", 0),
        ("head_dim", 3),
        ("head_dim", -2),
        ("max_position_embeddings", 10**12),
        ("rope_theta", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_theta", 10**400),
        ("rope_theta", 0),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", float("nan")),
        ("hidden_act", "gelu"),
        ("hidden_act", None),
        ("tie_word_embeddings", 1),
        ("attn_sub_norm", None),
    ],
)
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=name):
        ModelConfig.from_dict({**REQUIRED, name: value})


def test_heads_that_do_not_divide_are_refused_with_both_numbers():
    with pytest.raises(ConfigurationError, match=r"hidden_size 8 .* num_attention_heads 3"):
        ModelConfig.from_dict({**REQUIRED, "num_attention_heads": 3})
    with pytest.raises(ConfigurationError, match=r"num_attention_heads 2 .* num_key_value_heads 3"):
        ModelConfig.from_dict({**REQUIRED, "num_key_value_heads": 3})
    with pytest.raises(ConfigurationError, match=r"num_attention_heads \* head_dim .*131072"):
        ModelConfig.from_dict({**REQUIRED, "head_dim": 1 << 17})
