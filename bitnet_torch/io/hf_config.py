"""Hugging Face's ``config.json``: what it says about a model, read and written in one place.

Three kinds of keys are told apart when a file is read. Keys of :class:`ModelConfig` are used.
Keys that change what a model computes in ways this package does not implement must have the
value that switches them off: a given one, or, for the keys of a list, any of false, zero, null
and empty. Keys that change nothing (training, serving, bookkeeping) are passed over by name.

Any other key is an error, unless its value is null or empty (``""``, ``[]``, ``{}``), which
says nothing. False and zero do say something: an unknown ``use_rope: false`` would switch off
what this package computes.

``quantization_config`` says how the linear layers are stored:

==============  ===============  =======================  ================================
linear_class    mode             ``<module>.weight``      ``<module>.weight_scale``
==============  ===============  =======================  ================================
autobitlinear   offline          uint8 codes              w_scale
bitlinear       (none)           uint8 codes              1 / w_scale
autobitlinear   online           float masters            (none)
(no section)                     float, not quantised     (none)
==============  ===============  =======================  ================================

Our own section, ``bitnet_torch``, holds what Hugging Face has no word for. An unknown key in
it is always an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.models import ModelConfig

SECTION = "bitnet_torch"
_SUB_NORMS = ("attn_sub_norm", "ffn_sub_norm")
_SECTION_KEYS = ("tokenizer", "exact_scales", *_SUB_NORMS)
_QUANTIZATION_KEYS = (
    "quant_method",
    "linear_class",
    "quantization_mode",
    "modules_to_not_convert",
    "use_rms_norm",
    "rms_norm_eps",
)
# What the Hugging Face class of each model_type takes for a key that the file leaves out.
_FAMILIES: dict[str, dict[str, Any]] = {
    "bitnet": {
        "hidden_act": "relu2",
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "attn_sub_norm": True,
        "ffn_sub_norm": True,
    },
    "llama": {
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "attn_sub_norm": False,
        "ffn_sub_norm": False,
    },
    # Written for models that neither class of transformers can hold.
    SECTION: {},
}
_ARCHITECTURE = {
    "bitnet": "BitNetForCausalLM",
    "llama": "LlamaForCausalLM",
    SECTION: "BitNetTorchForCausalLM",
}
# Compared with ==, of which 0 and False equal none.
_SAYS_NOTHING: tuple[Any, ...] = (None, "", [], {})
_ONLY_VALUE = {"weight_bits": 1, "input_bits": 8, "partial_rotary_factor": 1.0}
# Features that are off, and that this package has not, while the value is false, zero or null.
_OFF = frozenset(
    {
        *("attention_bias", "mlp_bias", "add_cross_attention", "cross_attention_hidden_size"),
        *("is_decoder", "is_encoder_decoder", "tie_encoder_decoder", "pruned_heads"),
        *("sliding_window", "use_sliding_window", "rope_scaling"),
    }
)
_READ = ("model_type", "quantization_config", "eos_token_id", "rope_parameters")
_CHANGES_NOTHING = frozenset(
    {
        *(
            "_name_or_path",
            "architectures",
            "auto_map",
            "finetuning_task",
            "prefix",
            "problem_type",
        ),
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
    }
)


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint stores its ternary layers.

    Attributes:
        packed: True for uint8 codes and scales, False for float masters.
        inverse: Whether ``weight_scale`` holds 1 / w_scale.
        not_converted: Beginnings or ends of the names of modules that stay float.
    """

    packed: bool
    inverse: bool = False
    not_converted: tuple[str, ...] = ("lm_head",)

    def covers(self, module: str) -> bool:
        """Return whether the linear layer of this name is ternary."""
        return not any(module.startswith(n) or module.endswith(n) for n in self.not_converted)


@dataclass(frozen=True)
class CheckpointConfig:
    """What ``config.json`` says.

    Attributes:
        model: The decoder.
        quantization: None for a model in full precision.
        tokenizer: ``"bytes"``, or None where the file names none.
        eos_ids: Ids that end a text.
        exact_scales: Whether the weights file must hold the float32 bits of its scales.
    """

    model: ModelConfig
    quantization: Quantization | None
    tokenizer: str | None = None
    eos_ids: tuple[int, ...] = ()
    exact_scales: bool = False


def parse_config(values: Mapping[str, Any]) -> CheckpointConfig:
    """Read the content of a ``config.json``.

    Raises:
        CheckpointError: A key is unknown, missing, or has a value that is not supported.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise CheckpointError(
            f"model_type {family!r} is not supported; supported are {sorted(_FAMILIES)}",
            model_type=family,
        )
    section = _section(values)
    _check_keys(values)
    settings = {**_FAMILIES[family], **_model_settings(values), **_sub_norms(family, section)}
    try:
        model = ModelConfig.from_dict(settings)
    except ConfigurationError as error:
        raise CheckpointError(str(error), **error.context) from error
    return CheckpointConfig(
        model,
        _quantization(values.get("quantization_config")),
        section.get("tokenizer"),
        _eos_ids(values.get("eos_token_id"), model.vocab_size),
        section.get("exact_scales", False),
    )


def render_config(config: CheckpointConfig, dtype: str) -> dict[str, Any]:
    """Return the content of a ``config.json`` from which ``parse_config`` gives ``config``.

    Args:
        config: What the file shall say.
        dtype: Dtype of the float tensors, e.g. ``"float32"``.
    """
    model = config.model.to_dict()
    norms = {name: model.pop(name) for name in _SUB_NORMS}
    family = {(True, True): "bitnet", (False, False): "llama"}.get(tuple(norms.values()), SECTION)
    section: dict[str, Any] = norms if family == SECTION else {}
    if config.tokenizer is not None:
        section = {**section, "tokenizer": config.tokenizer}
    if config.exact_scales:
        section = {**section, "exact_scales": True}
    values = {
        "architectures": [_ARCHITECTURE[family]],
        "model_type": family,
        **model,
        "torch_dtype": dtype,
        # Absent, transformers would take the ids of another model's vocabulary.
        "bos_token_id": None,
        "eos_token_id": list(config.eos_ids) or None,
    }
    if config.quantization is not None:
        values["quantization_config"] = _render_quantization(config.quantization)
    if section:
        values[SECTION] = section
    return values


def _section(values: Mapping[str, Any]) -> dict[str, Any]:
    section = values.get(SECTION, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{SECTION!r} must be an object, got {section!r}")
    if unknown := sorted(set(section) - set(_SECTION_KEYS)):
        raise CheckpointError(
            f"unknown key {unknown[0]!r} in {SECTION!r}; known are {list(_SECTION_KEYS)}",
            unknown=unknown,
        )
    if section.get("tokenizer") not in (None, "bytes"):
        raise CheckpointError(
            f"tokenizer {section['tokenizer']!r} is not supported; supported is 'bytes'"
        )
    if not isinstance(section.get("exact_scales", False), bool):
        raise CheckpointError(f"exact_scales must be a bool, got {section['exact_scales']!r}")
    return section


def _sub_norms(family: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sub-norm settings of our own section, which only our own family has."""
    given = {name: section[name] for name in _SUB_NORMS if name in section}
    if set(given) != (set(_SUB_NORMS) if family == SECTION else set()):
        raise CheckpointError(
            f"{SECTION!r} holds {sorted(given)}; {_SUB_NORMS} belong to model_type {SECTION!r} "
            f"and to no other, got {family!r}"
        )
    return given


def _check_keys(values: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(ModelConfig)} - set(_SUB_NORMS)
    for key, value in values.items():
        if key in known or key in _READ or key in _CHANGES_NOTHING or key == SECTION:
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


def _model_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(ModelConfig) if field.name not in _SUB_NORMS]
    settings = {name: values[name] for name in names if name in values}
    rope = values.get("rope_parameters")
    if rope is None:
        return settings
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise CheckpointError(f"rope_parameters {rope!r} are not supported; only type 'default' is")
    if unknown := sorted(set(rope) - {"rope_type", "rope_theta", "partial_rotary_factor"}):
        raise CheckpointError(f"unknown key {unknown[0]!r} in rope_parameters")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"partial_rotary_factor must be 1.0, got {rope!r}")
    if "rope_theta" in rope:
        settings["rope_theta"] = rope["rope_theta"]
    return settings


def _eos_ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for item in ids:
        if type(item) is not int:
            raise CheckpointError(f"eos_token_id must be an id or a list of ids, got {value!r}")
    # Cut-down models keep the ids of the large vocabulary; such an id can never occur.
    return tuple(item for item in ids if 0 <= item < vocab_size)


def _quantization(values: Any) -> Quantization | None:
    if values is None:
        return None
    if not isinstance(values, dict) or values.get("quant_method") != "bitnet":
        raise CheckpointError(f"quantization_config {values!r} is not of quant_method 'bitnet'")
    if unknown := sorted(set(values) - set(_QUANTIZATION_KEYS)):
        raise CheckpointError(f"unknown key {unknown[0]!r} in quantization_config")
    if values.get("use_rms_norm"):
        raise CheckpointError("use_rms_norm (a norm inside each linear layer) is not supported")
    kind = (values.get("linear_class", "bitlinear"), values.get("quantization_mode", "offline"))
    known = {
        ("autobitlinear", "offline"): Quantization(packed=True),
        ("bitlinear", "offline"): Quantization(packed=True, inverse=True),
        ("autobitlinear", "online"): Quantization(packed=False),
    }
    # A list in place of a name would not even be hashable.
    if repr(kind) not in map(repr, known):
        raise CheckpointError(f"linear_class and quantization_mode {kind} are not supported")
    keep = values.get("modules_to_not_convert") or []
    if not isinstance(keep, list) or not all(isinstance(name, str) and name for name in keep):
        raise CheckpointError(f"modules_to_not_convert must be a list of names, got {keep!r}")
    base = known[kind]
    return Quantization(base.packed, base.inverse, tuple(dict.fromkeys(("lm_head", *keep))))


def _render_quantization(quantization: Quantization) -> dict[str, Any]:
    return {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if quantization.inverse else "autobitlinear",
        "quantization_mode": "offline" if quantization.packed else "online",
        "modules_to_not_convert": list(quantization.not_converted),
    }
