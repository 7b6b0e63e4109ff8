"""The families of models: what their class in transformers takes for what a file leaves out.

==============  ===============  =============  =======================================
model_type      sub-norms        q and k norms  biases
==============  ===============  =============  =======================================
bitnet          yes              no             q, k, v, o if ``attention_bias``
llama           no               no             q, k, v, o if ``attention_bias``; gate, up
                                                and down if ``mlp_bias``
qwen2           no               no             q, k, v
qwen3           no               yes            q, k, v, o if ``attention_bias``
bitnet_torch    as the section   as the section says
                says
==============  ===============  =============  =======================================

A file of the first BitNet models (1bitLLM) says ``llama`` and is known by its architecture
``BitnetForCausalLM``, with a small n, or by ``weight_bits``: it has sub-norms, and its linear
layers are float masters, although there is no ``quantization_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.hf_keys import PLAIN, SECTION, check_switch
from bitnet_torch.models import ModelConfig

LEGACY_ARCHITECTURE = "BitnetForCausalLM"
_BITNET_NORMS = {"attn_sub_norm": True, "ffn_sub_norm": True}
_NO_NORMS = {"attn_sub_norm": False, "ffn_sub_norm": False}
_LLAMA = {
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    **_NO_NORMS,
}
_QWEN = {**_LLAMA, "num_key_value_heads": 32, "max_position_embeddings": 32768}
_FAMILIES: dict[str, dict[str, Any]] = {
    "bitnet": {
        "hidden_act": "relu2",
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 5,
        "max_position_embeddings": 2048,
        **_BITNET_NORMS,
    },
    "llama": _LLAMA,
    "qwen2": {**_QWEN, "qkv_bias": True},
    "qwen3": {**_QWEN, "head_dim": 128, "qk_norm": True},
    # Written for models that no class of transformers can hold.
    SECTION: {},
}
_ARCHITECTURE = {
    "bitnet": "BitNetForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    SECTION: "BitNetTorchForCausalLM",
}
_HAS_ATTENTION_BIAS = ("bitnet", "llama", "qwen3")
SECTION_SWITCHES = ("attn_sub_norm", "ffn_sub_norm", "qk_norm", "qkv_bias", "o_bias", "mlp_bias")
_NEEDED_SWITCHES = {"attn_sub_norm", "ffn_sub_norm"}


def family_of(values: Mapping[str, Any]) -> str:
    """Return the ``model_type`` of a ``config.json``.

    Raises:
        CheckpointError: It is missing or not supported.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise CheckpointError(
            f"model_type {family!r} is not supported; supported are {sorted(_FAMILIES)}",
            model_type=family,
        )
    return family


def is_legacy(values: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is that of a 1bitLLM model."""
    architectures = values.get("architectures")
    named = isinstance(architectures, list) and LEGACY_ARCHITECTURE in architectures
    return named or (values.get("weight_bits") == 1 and values.get("quantization_config") is None)


def model_settings(
    values: Mapping[str, Any], section: Mapping[str, Any], family: str
) -> dict[str, Any]:
    """Return the settings of :class:`ModelConfig` that a file gives, but for the rotation.

    Raises:
        CheckpointError: A switch is set that the family has not.
    """
    settings = dict(_FAMILIES[family])
    if family != SECTION and is_legacy(values):
        settings = {**_LLAMA, **_BITNET_NORMS}
    settings.update({name: values[name] for name in PLAIN if name in values})
    return {**settings, **_switches(values, section, family)}


def _switches(
    values: Mapping[str, Any], section: Mapping[str, Any], family: str
) -> dict[str, bool]:
    given = {name: section[name] for name in SECTION_SWITCHES if name in section}
    if bool(given) != (family == SECTION) or (given and not set(given) >= _NEEDED_SWITCHES):
        raise CheckpointError(
            f"{SECTION!r} holds {sorted(given)}; {sorted(_NEEDED_SWITCHES)} belong to model_type "
            f"{SECTION!r} and to no other, got {family!r}"
        )
    if given:
        return given
    switches = {}
    if check_switch(values, "attention_bias"):
        if family not in _HAS_ATTENTION_BIAS:
            raise CheckpointError(f"attention_bias = True is not supported for {family!r}")
        switches = {"qkv_bias": True, "o_bias": True}
    if check_switch(values, "mlp_bias"):
        if family != "llama":
            raise CheckpointError(f"mlp_bias = True is not supported for {family!r}")
        switches["mlp_bias"] = True
    return switches


def check_windows(values: Mapping[str, Any], family: str) -> None:
    """Raise CheckpointError if some layer would look at a window of the text only."""
    used = values.get("use_sliding_window")
    window = values.get("sliding_window")
    # The Qwen classes ignore the size of a window that is not used.
    if used or (window and not family.startswith("qwen")):
        raise CheckpointError(
            f"sliding_window = {window!r} is not supported (use_sliding_window = {used!r})"
        )
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise CheckpointError(f"layer_types {kinds!r} are not supported but 'full_attention'")


def family_for(model: ModelConfig) -> str:
    """Return the ``model_type`` whose class in transformers computes ``model``; ours if none."""
    norms = (model.attn_sub_norm, model.ffn_sub_norm, model.qk_norm)
    same_bias = model.qkv_bias == model.o_bias
    if norms == (True, True, False) and same_bias and not model.mlp_bias:
        # BitNet's class normalises hidden_size elements there, whatever the width of the heads.
        wide = model.num_attention_heads * model.head_dim
        return "bitnet" if wide == model.hidden_size else SECTION
    if norms == (False, False, False) and same_bias:
        return "llama"
    if norms == (False, False, False) and model.qkv_bias and not model.mlp_bias:
        return "qwen2"
    if norms == (False, False, True) and same_bias and not model.mlp_bias:
        return "qwen3"
    return SECTION


def render_family(model: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what ``config.json`` says of a model's family, and what our section does."""
    family = family_for(model)
    values: dict[str, Any] = {"architectures": [_ARCHITECTURE[family]], "model_type": family}
    values.update({name: getattr(model, name) for name in PLAIN})
    if family == SECTION:
        return values, {name: getattr(model, name) for name in SECTION_SWITCHES}
    if family in _HAS_ATTENTION_BIAS:
        values["attention_bias"] = model.o_bias
    if family == "llama":
        values["mlp_bias"] = model.mlp_bias
    return values, {}
