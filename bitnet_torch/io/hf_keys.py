"""The keys of ``config.json``: which are used, which must be off, which change nothing.

Any other key is an error, unless its value is null or empty (``""``, ``[]``, ``{}``), which
says nothing. False and zero do say something: an unknown ``use_rope: false`` would switch off
what this package computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bitnet_torch.errors import CheckpointError
from bitnet_torch.models import ModelConfig

SECTION = "bitnet_torch"
# Settings that Hugging Face derives from the class, or spells in another way.
PRIVATE = ("attn_sub_norm", "ffn_sub_norm", "qk_norm", "qkv_bias", "o_bias", "rope_scaling")
PLAIN = tuple(f.name for f in fields(ModelConfig) if f.name not in (*PRIVATE, "mlp_bias"))
# Read by the modules of this package that each of them belongs to.
_READ = frozenset(
    {
        *("model_type", "architectures", "quantization_config", "eos_token_id", SECTION),
        *("rope_parameters", "rope_scaling", "attention_bias", "mlp_bias"),
        *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    }
)
_ONLY_VALUE = {"weight_bits": 1, "input_bits": 8, "partial_rotary_factor": 1.0}
# Compared with ==, of which 0 and False equal none.
_SAYS_NOTHING: tuple[Any, ...] = (None, "", [], {})
# Features that are off, and that this package has not, while the value is false, zero or null.
_OFF = frozenset(
    {
        *("add_cross_attention", "cross_attention_hidden_size", "pruned_heads", "use_mrope"),
        *("is_decoder", "is_encoder_decoder", "tie_encoder_decoder"),
    }
)
_CHANGES_NOTHING = frozenset(
    {
        *("_name_or_path", "auto_map", "finetuning_task", "prefix", "problem_type"),
        *("attention_dropout", "initializer_range", "pretraining_tp", "task_specific_params"),
        *("bos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
        *("dtype", "torch_dtype", "torchscript", "transformers_version", "unsloth_version"),
        *("id2label", "label2id", "tokenizer_class", "use_cache", "return_dict"),
        *("output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
        *("max_length", "min_length", "num_beams", "num_return_sequences", "length_penalty"),
        *("do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
        *("early_stopping", "num_beam_groups", "diversity_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "remove_invalid_values", "output_scores"),
        *("return_dict_in_generate", "use_bfloat16", "tf_legacy_loss"),
        *("_attn_implementation_autoset", "_attn_implementation", "attn_implementation"),
    }
)


def check_keys(values: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a key that may change the model and that nobody reads."""
    for key, value in values.items():
        if key in PLAIN or key in _READ or key in _CHANGES_NOTHING:
            continue
        if key in _ONLY_VALUE:
            if value != _ONLY_VALUE[key]:
                raise CheckpointError(f"{key} must be {_ONLY_VALUE[key]}, got {value!r}", key=key)
        elif key in _OFF:
            if value:
                raise CheckpointError(f"{key} = {value!r} is not supported", key=key)
        elif value not in _SAYS_NOTHING:
            raise CheckpointError(
                f"config key {key!r} = {value!r} is not known and may change what the model does",
                key=key,
            )


def check_switch(values: Mapping[str, Any], key: str) -> bool:
    """Return a switch of ``config.json``, off where it is absent or null.

    Raises:
        CheckpointError: It is neither true nor false.
    """
    value = values.get(key)
    if value not in (None, True, False):
        raise CheckpointError(f"{key} must be true or false, got {value!r}", key=key)
    return bool(value)
