import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.hf_config import CheckpointConfig, Quantization, parse_config, render_config
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


@pytest.mark.parametrize("norms", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize(
    "quantization", [None, Quantization(True), Quantization(False), Quantization(True, True)]
)
def test_what_is_written_is_read_back(norms, quantization):
    model = tiny_config(attn_sub_norm=norms[0], ffn_sub_norm=norms[1])
    config = CheckpointConfig(model, quantization, "bytes", (7, 9), exact_scales=True)
    assert parse_config(json.loads(json.dumps(render_config(config, "float32")))) == config


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


def test_layers_that_stay_float_are_named_by_beginning_or_end():
    quantization = Quantization(True, not_converted=("lm_head", "model.layers.1.mlp.up_proj"))
    assert not quantization.covers("lm_head")
    assert not quantization.covers("model.layers.1.mlp.up_proj")
    assert quantization.covers("model.layers.10.mlp.up_proj")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": ["bitnet"]}, "model_type"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"sliding_window": 128}, "sliding_window = 128"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling = "),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
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
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms"),
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
    for key in ("attention_bias", "mlp_bias", "is_encoder_decoder", "sliding_window"):
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


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(BITNET["quantization_config"])), JSON)
def test_any_quantization_is_read_or_refused(key, value):
    with contextlib.suppress(CheckpointError):
        parse_config({**BITNET, "quantization_config": {"quant_method": "bitnet", key: value}})
