import contextlib
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.hf_config import CheckpointConfig, parse_config, render_config
from bitnet_torch.io.hf_quantization import Quantization
from bitnet_torch.models.rope_scaling import RopeScaling
from bitnet_torch.models.rotary import rotary_tables
from tests.models.tiny import tiny_config

# As transformers 5 writes it for a small BitNetForCausalLM.
BITNET = {
    "architectures": ["BitNetForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "chunk_size_feed_forward": 0,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "hidden_act": "relu2",
    "hidden_size": 64,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "is_encoder_decoder": False,
    "max_position_embeddings": 128,
    "model_type": "bitnet",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "quantization_config": {
        "linear_class": "autobitlinear",
        "quant_method": "bitnet",
        "quantization_mode": "offline",
    },
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "transformers_version": "5.0.0",
    "use_cache": True,
    "vocab_size": 100,
}


YARN = RopeScaling("yarn", 4.0, 64, beta_fast=32.0, beta_slow=1.0, attention_factor=1.25)
NO_NORMS = {"attn_sub_norm": False, "ffn_sub_norm": False}


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({"head_dim": 12}, "bitnet"),
        ({}, "bitnet_torch"),
        ({"head_dim": 12, "qkv_bias": True, "o_bias": True}, "bitnet"),
        ({"head_dim": 12, "qkv_bias": True}, "bitnet_torch"),
        ({"head_dim": 12, "mlp_bias": True}, "bitnet_torch"),
        ({"head_dim": 12, "qk_norm": True}, "bitnet_torch"),
        (NO_NORMS, "llama"),
        ({**NO_NORMS, "mlp_bias": True, "qkv_bias": True, "o_bias": True}, "llama"),
        ({**NO_NORMS, "rope_scaling": RopeScaling("linear", 2.0)}, "llama"),
        ({**NO_NORMS, "rope_scaling": YARN}, "llama"),
        ({**NO_NORMS, "qkv_bias": True}, "qwen2"),
        ({**NO_NORMS, "qkv_bias": True, "mlp_bias": True}, "bitnet_torch"),
        ({**NO_NORMS, "o_bias": True}, "bitnet_torch"),
        ({**NO_NORMS, "qk_norm": True}, "qwen3"),
        ({**NO_NORMS, "qk_norm": True, "qkv_bias": True}, "bitnet_torch"),
        ({"attn_sub_norm": True, "ffn_sub_norm": False}, "bitnet_torch"),
    ],
)
@pytest.mark.parametrize(
    "quantization",
    [
        None,
        Quantization(True),
        Quantization(False, norm_eps=1e-5),
        Quantization(True, True, ("lm_head", "model.layers.0")),
    ],
)
def test_what_is_written_is_read_back(changes, family, quantization):
    model = tiny_config(**changes)
    config = CheckpointConfig(model, quantization, "bytes", (7, 9), exact_scales=True)
    written = json.loads(json.dumps(render_config(config, "float32")))
    assert written["model_type"] == family
    assert parse_config(written) == config


def test_a_file_of_transformers_is_read():
    config = parse_config(BITNET)
    assert config.model.rope_theta == 10000.0
    assert config.model.attn_sub_norm
    assert config.model.head_dim == 16
    assert config.eos_ids == (2,)
    assert config.tokenizer is None
    assert config.quantization == Quantization(packed=True)


def test_a_llama_has_no_sub_norms_and_its_own_defaults():
    values = {k: v for k, v in BITNET.items() if k not in ("hidden_act", "rope_parameters")}
    config = parse_config({**values, "model_type": "llama", "quantization_config": None})
    assert not config.model.attn_sub_norm
    assert config.model.hidden_act == "silu"
    assert config.model.rope_theta == 10000.0
    assert config.quantization is None


QWEN = {
    **BITNET,
    "hidden_act": "silu",
    "layer_types": ["full_attention", "full_attention"],
    "max_window_layers": 28,
    "quantization_config": None,
    "sliding_window": 4096,
    "use_sliding_window": False,
}


def test_a_qwen_has_the_biases_and_norms_of_its_class():
    two = parse_config({**QWEN, "model_type": "qwen2"}).model
    assert (two.qkv_bias, two.o_bias, two.mlp_bias, two.qk_norm) == (True, False, False, False)
    three = parse_config({**QWEN, "model_type": "qwen3"}).model
    assert (three.qkv_bias, three.o_bias, three.qk_norm, three.head_dim) == (
        False,
        False,
        True,
        128,
    )
    biased = parse_config({**QWEN, "model_type": "qwen3", "attention_bias": True}).model
    assert (biased.qkv_bias, biased.o_bias) == (True, True)
    few = {k: v for k, v in QWEN.items() if k not in ("num_key_value_heads", "rms_norm_eps")}
    sparse = parse_config({**few, "model_type": "qwen2", "num_attention_heads": 32}).model
    assert (sparse.num_key_value_heads, sparse.rms_norm_eps) == (32, 1e-6)


def test_a_llama_may_have_biases_and_a_bitnet_those_of_attention():
    values = {**BITNET, "attention_bias": True}
    assert parse_config(values).model.o_bias
    llama = parse_config({**values, "model_type": "llama", "mlp_bias": True}).model
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias) == (True, True, True)


@pytest.mark.parametrize(
    "legacy", [{"architectures": ["BitnetForCausalLM"]}, {"weight_bits": 1, "input_bits": 8}]
)
def test_a_1bitllm_file_is_a_llama_with_sub_norms_and_masters(legacy):
    left_out = ("quantization_config", "hidden_act", "rope_parameters")
    values = {k: v for k, v in BITNET.items() if k not in left_out}
    config = parse_config({**values, "model_type": "llama", **legacy})
    assert config.model.attn_sub_norm
    assert config.model.ffn_sub_norm
    assert config.model.hidden_act == "silu"
    assert config.model.rope_theta == 10000.0
    assert config.quantization == Quantization(packed=False)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def rope_of(**changes):
    values = {k: v for k, v in BITNET.items() if k != "rope_parameters"}
    return parse_config({**values, "rope_theta": 5000.0, **changes}).model


@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_both_spellings_of_a_scaled_rotation_are_read(section, name):
    model = rope_of(**{section: {name: "llama3", **LLAMA3}})
    assert model.rope_theta == 5000.0
    assert model.rope_scaling == RopeScaling("llama3", 8.0, 64, 1.0, 4.0)
    assert rope_of(**{section: {name: "linear", "factor": 2}}).rope_scaling == RopeScaling(
        "linear", 2.0
    )
    theta = rope_of(**{section: {name: "dynamic", "factor": 2.0, "rope_theta": 7.0}})
    assert (theta.rope_theta, theta.rope_scaling) == (7.0, RopeScaling("dynamic", 2.0))


def test_yarn_derives_what_a_file_leaves_out():
    plain = rope_of(rope_scaling={"type": "yarn", "factor": 4.0}).rope_scaling
    assert plain.original_max_position_embeddings == 128
    assert (plain.beta_fast, plain.beta_slow, plain.truncate) == (32.0, 1.0, True)
    assert plain.attention_factor == 0.1 * math.log(4.0) + 1
    ratio = rope_of(rope_scaling={"type": "yarn", "original_max_position_embeddings": 32})
    assert ratio.rope_scaling.factor == 4.0
    same = {"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7}
    assert rope_of(rope_scaling=same).rope_scaling.attention_factor == 1.0
    given = {"type": "yarn", "factor": 0.5, "attention_factor": 1.5, "truncate": False}
    assert rope_of(rope_scaling=given).rope_scaling.attention_factor == 1.5
    given.pop("attention_factor")
    assert rope_of(rope_scaling=given).rope_scaling.attention_factor == 1.0


def test_the_scale_direction_and_the_unit_of_a_bias_follow_from_the_linear_class():
    def quantization(**section):
        values = {"quantization_config": {"quant_method": "bitnet", **section}}
        return parse_config({**BITNET, **values}).quantization

    assert quantization() == Quantization(packed=True, inverse=True)
    assert quantization(linear_class="bitlinear", quantization_mode="online").inverse
    multiply = quantization(linear_class="autobitlinear")
    assert (multiply.packed, multiply.inverse, multiply.scaled_bias) == (True, False, True)
    online = quantization(linear_class="autobitlinear", quantization_mode="online")
    assert (online.packed, online.scaled_bias) == (False, False)
    assert not quantization().scaled_bias
    assert quantization(use_rms_norm=True).norm_eps == 1e-6
    assert quantization(modules_to_not_convert=[]).covers("lm_head")


def test_layers_that_stay_float_are_named_by_beginning_or_end():
    quantization = Quantization(True, not_converted=("lm_head", "model.layers.1.mlp.up_proj"))
    assert not quantization.covers("lm_head")
    assert not quantization.covers("model.layers.1.mlp.up_proj")
    assert quantization.covers("model.layers.10.mlp.up_proj")


EPS_0 = {"rms_norm_eps": 0.0}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": ["bitnet"]}, "model_type"),
        ({"attention_bias": 1.5}, "attention_bias must be true or false, got 1.5"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported for 'bitnet'"),
        ({"model_type": "qwen2", "attention_bias": True}, "not supported for 'qwen2'"),
        ({"sliding_window": 128}, "sliding_window = 128"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "needs a factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_parameters .* differ"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "needs low_freq_factor"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type must be"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type must be"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "factor"),
        (
            {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
            "division by zero",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}},
            "rope_theta must be above 1",
        ),
        ({"rope_parameters": {"factor": 2}}, "'factor' in rope_parameters"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": 3}, "rope_parameters"),
        ({"weight_bits": 2}, "weight_bits must be 1, got 2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"bitnet_torch": {"tokeniser": "bytes"}}, "unknown key 'tokeniser' in 'bitnet_torch'"),
        ({"bitnet_torch": {"tokenizer": "bpe"}}, "tokenizer 'bpe'"),
        ({"bitnet_torch": {"attn_sub_norm": True}}, "attn_sub_norm"),
        ({"bitnet_torch": {"exact_scales": 1}}, "exact_scales must be a bool, got 1"),
        ({"bitnet_torch": 1}, "'bitnet_torch' must be an object"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": {"quant_method": "bitnet", "group": 2}}, "'group'"),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": 3}}, "use_rms"),
        (
            {"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True, **EPS_0}},
            "rms_norm_eps",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["a.*"]}},
            "patterns are not",
        ),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": []}}, "linear_class"),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": "x"}},
            "modules_to_not_convert",
        ),
    ],
)
def test_what_is_not_supported_is_named(change, match):
    with pytest.raises(CheckpointError, match=match):
        parse_config({**BITNET, **change})


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_an_unknown_key_that_says_nothing_is_passed_over(value):
    assert parse_config({**BITNET, "some_feature": value}) == parse_config(BITNET)


@pytest.mark.parametrize("value", [False, 0, 0.0, -0.0, True, 1, "no", [0], {"a": None}])
@pytest.mark.parametrize("key", ["use_rope", "is_causal", "some_feature"])
def test_an_unknown_key_with_any_value_is_named(key, value):
    with pytest.raises(CheckpointError, match=f"'{key}' = .* is not known"):
        parse_config({**BITNET, key: value})


@pytest.mark.parametrize("value", [False, None, 0])
def test_a_known_feature_that_is_off_is_passed_over(value):
    for key in ("is_decoder", "use_mrope", "is_encoder_decoder", "sliding_window"):
        assert parse_config({**BITNET, key: value}) == parse_config(BITNET)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_a_missing_size_is_named(key):
    with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
        parse_config({k: v for k, v in BITNET.items() if k != key})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([*BITNET, "bitnet_torch", "other"]), JSON)
def test_any_value_of_any_key_is_read_or_refused(key, value):
    with contextlib.suppress(CheckpointError):
        assert isinstance(parse_config({**BITNET, key: value}), CheckpointConfig)


KINDS = st.sampled_from(["linear", "dynamic", "llama3", "yarn"])
ROPE_KEYS = [*LLAMA3, "beta_fast", "attention_factor", "mscale", "truncate", "rope_theta"]


@settings(deadline=None, max_examples=300)
@given(KINDS, st.dictionaries(st.sampled_from(ROPE_KEYS), JSON | st.floats(-2, 9), max_size=3))
def test_any_rotation_is_read_or_refused(kind, changes):
    rope = {"rope_type": kind, **LLAMA3, **changes}
    if kind in ("linear", "dynamic"):
        rope = {k: v for k, v in rope.items() if k in ("rope_type", "factor", "rope_theta")}
    with contextlib.suppress(CheckpointError):
        model = rope_of(rope_parameters=rope)
        assert torch.isfinite(rotary_tables(16, model.rope_theta, 3, model.rope_scaling)[0]).all()


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(BITNET["quantization_config"])), JSON)
def test_any_quantization_is_read_or_refused(key, value):
    with contextlib.suppress(CheckpointError):
        read = parse_config(
            {**BITNET, "quantization_config": {"quant_method": "bitnet", key: value}}
        )
        # It says how weights are stored, and nothing of the model.
        assert isinstance(read.quantization, Quantization)
        assert replace(read, quantization=None) == replace(parse_config(BITNET), quantization=None)
