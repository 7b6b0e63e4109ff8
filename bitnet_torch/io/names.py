"""The names of tensors and modules in a checkpoint, where they differ from those of a model."""

from __future__ import annotations

import re

_LEGACY = {
    ".self_attn.inner_attn_ln.": ".self_attn.attn_sub_norm.",
    ".mlp.ffn_layernorm.": ".mlp.ffn_sub_norm.",
}
# Tables that old versions of transformers wrote, although they follow from the configuration.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def file_name(model_name: str) -> str:
    """Return how a checkpoint calls a parameter or module of a model.

    A linear layer behind a norm of its own (:class:`~bitnet_torch.nn.NormedLinear`) is a part of
    that module here and is the module itself there.
    """
    return f"{model_name}.".replace(".linear.", ".").removesuffix(".")


def modern_name(stored: str) -> str:
    """Return today's name of a tensor that the first BitNet models (1bitLLM) call otherwise."""
    for old, new in _LEGACY.items():
        stored = stored.replace(old, new)
    return stored


def is_derived(stored: str) -> bool:
    """Return whether a tensor says nothing that the configuration does not."""
    return _DERIVED.fullmatch(stored) is not None
