"""The metadata of a GGUF file as a model's configuration, and back.

===============  ==============  ============================================================
architecture     activation      norms and biases
===============  ==============  ============================================================
llama            silu            biases as the file has them
qwen2            silu            biases of q, k and v
qwen3            silu            norms of q and k
bitnet           silu            sub-norms (1bitLLM's models; mainline llama.cpp)
bitnet-25,       relu2           sub-norms (Microsoft's models; bitnet.cpp only)
bitnet-b1.58
===============  ==============  ============================================================

A key that would change what is computed in a way that this package has not is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.io.gguf.file import StoredTensor
from bitnet_torch.io.gguf.metadata import Metadata
from bitnet_torch.io.gguf.names import EMBEDDING, HEAD
from bitnet_torch.io.gguf.writer import Writable
from bitnet_torch.models import ModelConfig
from bitnet_torch.models.rope_scaling import RopeScaling

_RELU2 = ("bitnet-25", "bitnet-b1.58")
_SUB_NORMS = ("bitnet", *_RELU2)
ARCHITECTURES = ("llama", "qwen2", "qwen3", *_SUB_NORMS)
_ONLY_ZERO = ("expert_count", "attention.sliding_window", "attention.clamp_kqv", "logit_scale")
_NO_SCALING = ("none", "")


def parse_metadata(
    metadata: Metadata, tensors: Mapping[str, StoredTensor]
) -> tuple[str, ModelConfig]:
    """Return the architecture and the configuration of a file's model.

    Raises:
        CheckpointError: The architecture is not supported, or a key is missing or refused.
    """
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"architecture {name!r} is not supported; supported are {list(ARCHITECTURES)}",
            architecture=name,
        )
    if EMBEDDING not in tensors:
        raise CheckpointError(f"tensor {EMBEDDING!r} is missing", missing=[EMBEDDING])
    for key in _ONLY_ZERO:
        if (value := metadata.real(f"{name}.{key}", 0)) != 0:
            raise CheckpointError(f"metadata '{name}.{key}' = {value} is not supported")
    try:
        return name, ModelConfig.from_dict(_settings(name, metadata, tensors))
    except ConfigurationError as error:
        raise CheckpointError(str(error), **error.context) from error


def _settings(name: str, metadata: Metadata, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    heads = metadata.integer(f"{name}.attention.head_count")
    context = metadata.integer(f"{name}.context_length")
    sub_norms = name in _SUB_NORMS
    return {
        "vocab_size": tensors[EMBEDDING].shape[0],
        "hidden_size": metadata.integer(f"{name}.embedding_length"),
        "intermediate_size": metadata.integer(f"{name}.feed_forward_length"),
        "num_hidden_layers": metadata.integer(f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer(f"{name}.attention.head_count_kv", heads),
        "head_dim": _head_dim(name, metadata),
        "max_position_embeddings": context,
        "rope_theta": metadata.real(f"{name}.rope.freq_base", 10000.0),
        "rms_norm_eps": _shortest(metadata.real(f"{name}.attention.layer_norm_rms_epsilon")),
        "hidden_act": "relu2" if name in _RELU2 else "silu",
        "tie_word_embeddings": HEAD not in tensors,
        "attn_sub_norm": sub_norms,
        "ffn_sub_norm": sub_norms,
        "qk_norm": name == "qwen3",
        "qkv_bias": "blk.0.attn_q.bias" in tensors,
        "o_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "rope_scaling": _rope_scaling(name, metadata, tensors),
    }


def _shortest(value: float) -> float:
    """Return the float with the fewest digits that a float32 was rounded from: 1e-5, say."""
    return float(f"{value:.7g}")


def _head_dim(name: str, metadata: Metadata) -> int:
    """Return the width of a head, all of which must be rotated; 0 if the file does not say."""
    key, value, rotated = (
        metadata.integer(f"{name}.{key}", 0)
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    )
    said = [width for width in (key, value, rotated) if width]
    if len(set(said)) > 1:
        raise CheckpointError(
            f"heads of {key} (keys), {value} (values) and {rotated} (rotated) elements are not "
            "supported; all must be the same"
        )
    return said[0] if said else 0


def _rope_scaling(
    name: str, metadata: Metadata, tensors: Mapping[str, StoredTensor]
) -> RopeScaling | None:
    if "rope_freqs.weight" in tensors:
        raise CheckpointError(
            "tensor 'rope_freqs.weight' stretches the rotary frequencies, which is not supported "
            "in GGUF files; the Hugging Face form of the model can be loaded",
            tensor="rope_freqs.weight",
        )
    kind = metadata.text(f"{name}.rope.scaling.type", "none")
    if kind in _NO_SCALING:
        return None
    if kind != "linear":
        raise CheckpointError(f"metadata '{name}.rope.scaling.type' = {kind!r} is not supported")
    return RopeScaling("linear", metadata.real(f"{name}.rope.scaling.factor"))


def architecture_for(config: ModelConfig) -> str:
    """Return the architecture under which a file holds a model.

    Raises:
        CheckpointError: GGUF has none for it.
    """
    sub_norms = (config.attn_sub_norm, config.ffn_sub_norm)
    biases = (config.qkv_bias, config.o_bias, config.mlp_bias)
    if all(sub_norms) and not config.qk_norm and not any(biases):
        return "bitnet" if config.hidden_act == "silu" else "bitnet-b1.58"
    plain = not any(sub_norms) and config.hidden_act == "silu"
    if plain and config.qk_norm and not any(biases):
        return "qwen3"
    if plain and not config.qk_norm:
        return "qwen2" if biases == (True, False, False) else "llama"
    raise CheckpointError(
        f"GGUF has no architecture with hidden_act {config.hidden_act!r}, attn_sub_norm "
        f"{config.attn_sub_norm}, ffn_sub_norm {config.ffn_sub_norm}, qk_norm {config.qk_norm} "
        f"and biases {biases} of qkv, o and mlp"
    )


def render_metadata(name: str, config: ModelConfig) -> dict[str, Writable]:
    """Return the keys from which :func:`parse_metadata` gives ``config``.

    Raises:
        CheckpointError: The rotary scaling cannot be stored.
    """
    values: dict[str, Writable] = {
        "general.architecture": name,
        f"{name}.vocab_size": config.vocab_size,
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.attention.head_count": config.num_attention_heads,
        f"{name}.attention.head_count_kv": config.num_key_value_heads,
        f"{name}.attention.key_length": config.head_dim,
        f"{name}.attention.value_length": config.head_dim,
        f"{name}.rope.dimension_count": config.head_dim,
        f"{name}.rope.freq_base": float(config.rope_theta),
        f"{name}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    scaling = config.rope_scaling
    if scaling is None:
        return values
    if scaling.kind != "linear":
        raise CheckpointError(f"rope scaling {scaling.kind!r} is not written to GGUF files")
    values[f"{name}.rope.scaling.type"] = "linear"
    values[f"{name}.rope.scaling.factor"] = float(scaling.factor)
    return values
