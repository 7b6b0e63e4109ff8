"""Attention with rotary positions over the tokens of a call and, with a cache, those before.

Two ops do all of it, in training, evaluation and generation alike, with the same bits:
:mod:`bitnet_torch.ops.rope_kv_write` (``rope`` without a cache) and
:mod:`bitnet_torch.ops.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitnet_torch.models.cache import KVCache
from bitnet_torch.ops.attention import attention
from bitnet_torch.ops.rope import rope
from bitnet_torch.ops.rope_kv_write import rope_kv_write


@dataclass(frozen=True)
class StepContext:
    """What all layers of one forward pass share.

    Attributes:
        cos: (B or 1, 1, T, D/2) rotary cosines of the positions.
        sin: Their sines, same shape.
        start: () int64, key index of the first of these tokens; 0 without a cache.
        first: (B,) int64, key index of each sequence's first token; None means 0.
        cache: Where keys and values go, or None.
    """

    cos: Tensor
    sin: Tensor
    start: Tensor
    first: Tensor | None
    cache: KVCache | None


def attend(queries: Tensor, keys: Tensor, values: Tensor, step: StepContext, layer: int) -> Tensor:
    """Return the attention output (B, T, heads, D), contiguous.

    Args:
        queries: (B, heads, T, D), not rotated yet.
        keys: (B, kv_heads, T, D), not rotated yet; head h reads ``h // (heads / kv_heads)``.
        values: (B, kv_heads, T, D).
        step: The pass.
        layer: Index of the decoder layer.
    """
    cos, sin, start, first = step.cos, step.sin, step.start, step.first
    if step.cache is None:
        queries, keys = rope(queries, cos, sin), rope(keys, cos, sin)
        mixed: Tensor = attention(queries, keys, values, None, None, start, first)
        return mixed
    held = step.cache.layer(layer)
    queries = rope_kv_write(queries, keys, values, cos, sin, *held, start)
    mixed = attention(queries, *held, start, first)
    return mixed
