"""Checkpoints of every family that is read, made by transformers from seeded tiny configurations.

Nothing here uses the package under test: masters are quantised by the formula of the paper, and
packed by transformers.
"""

import json
from dataclasses import dataclass, field

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.bitnet import pack_weights

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DIVIDE = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
MULTIPLY = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
}
ONLINE = {**MULTIPLY, "quantization_mode": "online"}
INNER_NORM = {"use_rms_norm": True, "rms_norm_eps": 1e-5}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SOME_FLOAT = {"modules_to_not_convert": ["lm_head", "q_proj"]}
BIAS = {"attention_bias": True}


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: a model_type, what its configuration says, how it is stored."""

    name: str
    model_type: str
    quantization: dict | None = None
    changes: dict = field(default_factory=dict)

    def __str__(self):
        return self.name

    @property
    def packed(self):
        q = self.quantization
        return q is not None and q.get("quantization_mode", "offline") == "offline"


FAMILIES = [
    Family("bitnet-multiply", "bitnet", MULTIPLY, {"tie_word_embeddings": True}),
    Family("bitnet-online", "bitnet", ONLINE, {"tie_word_embeddings": True}),
    Family("bitnet-divide", "bitnet", DIVIDE),
    Family("bitnet-bias-multiply", "bitnet", MULTIPLY, BIAS),
    Family("llama-divide", "llama", DIVIDE),
    Family("llama-divide-tied", "llama", {"quant_method": "bitnet"}, {"tie_word_embeddings": True}),
    Family("llama-multiply", "llama", MULTIPLY),
    Family("llama-online", "llama", ONLINE),
    Family("llama-wide-heads-divide", "llama", DIVIDE, {"head_dim": 32}),
    Family("llama-bias-divide", "llama", DIVIDE, {**BIAS, "mlp_bias": True}),
    Family("llama-bias-multiply", "llama", MULTIPLY, {**BIAS, "mlp_bias": True}),
    Family("llama-bias-online", "llama", ONLINE, {**BIAS, "mlp_bias": True}),
    Family("llama-inner-norm-divide", "llama", {**DIVIDE, **INNER_NORM}),
    Family("llama-inner-norm-multiply", "llama", {**MULTIPLY, **INNER_NORM}, BIAS),
    Family("llama-inner-norm-online", "llama", {**ONLINE, **INNER_NORM}),
    Family(
        "llama-some-float", "llama", {**DIVIDE, "modules_to_not_convert": ["lm_head", "q_proj"]}
    ),
    Family("llama-float-bias", "llama", None, {**BIAS, "mlp_bias": True}),
    Family("llama-llama3", "llama", None, {"rope_parameters": {**LLAMA3, "rope_theta": 5000.0}}),
    Family("llama-linear", "llama", None, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    Family("llama-dynamic", "llama", None, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    Family("llama-yarn", "llama", None, {"rope_parameters": {**YARN, "rope_theta": 5000.0}}),
    Family("qwen2", "qwen2"),
    Family("qwen2-online", "qwen2", ONLINE, {"tie_word_embeddings": True}),
    Family("qwen2-divide", "qwen2", DIVIDE),
    Family("qwen3", "qwen3", None, {"head_dim": 32}),
    Family("qwen3-multiply", "qwen3", MULTIPLY, {"head_dim": 16}),
]


def make_folder(folder, family, dtype=torch.float32):
    """Write a checkpoint of a family, whose float tensors and scales are of ``dtype``."""
    folder.mkdir()
    config = AutoConfig.for_model(family.model_type, **{**SIZES, **family.changes})
    torch.manual_seed(len(family.name))
    model = AutoModelForCausalLM.from_config(config)
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        drawn = value.new_empty(value.shape).normal_()
        if name.endswith("norm.weight") or "layernorm" in name:
            drawn = 1 + 0.3 * drawn
        elif name.endswith(".bias"):
            drawn = 0.2 * drawn
        else:
            drawn = drawn / value.shape[-1] ** 0.5
        tensors[name] = drawn.to(dtype)
    if family.quantization is not None:
        quantise(tensors, family, dtype)
    values = json.loads(config.to_json_string(use_diff=False))
    values |= {"dtype": str(dtype).removeprefix("torch.")}
    if "rope_scaling" in family.changes:
        values.pop("rope_parameters")
        values |= {"rope_theta": 10000.0, "rope_scaling": family.changes["rope_scaling"]}
    if family.quantization is not None:
        values["quantization_config"] = family.quantization
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def quantise(tensors, family, dtype):
    """Turn the masters of a model's layers into what the family stores."""
    q = family.quantization
    kept = q.get("modules_to_not_convert") or ["lm_head"]
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        module = name.removesuffix(".weight")
        if any(module.endswith(k) for k in kept):
            continue
        if q.get("use_rms_norm"):
            tensors[f"{module}.rms_norm.weight"] = (
                1 + 0.3 * torch.randn(tensors[name].shape[1])
            ).to(dtype)
        if family.packed:
            w = tensors[name].float()
            scale = w.abs().mean().clamp(min=1e-5)
            tensors[name] = pack_weights((w / scale).round().clamp(-1, 1))
            stored = 1 / scale if q.get("linear_class", "bitlinear") == "bitlinear" else scale
            tensors[f"{module}.weight_scale"] = stored.reshape(1).to(dtype)


def reference(folder, dtype=torch.float32):
    """Load a folder with transformers, eager attention, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()
