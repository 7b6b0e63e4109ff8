"""Attention over the keys seen so far, with grouped heads and padding: one function.

This calls PyTorch's fused attention, which picks its order of summation by the number of
tokens. Generation's order-fixed attention comes with its own op and replaces the body of
:func:`attend`; nothing else knows how attention is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Return the attention output (B, heads, T, D).

    Args:
        queries: (B, heads, T, D), rotated.
        keys: (B, kv_heads, S, D), rotated; head h reads key head ``h // (heads / kv_heads)``.
        values: (B, kv_heads, S, D).
        visible: (B, 1, T, S) bool from :func:`visible_keys`; None means plainly causal, S = T.
    """
    grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible, is_causal=visible is None, enable_gqa=grouped
    )


def visible_keys(real: Tensor, tokens: int) -> Tensor:
    """Return which key each of the last ``tokens`` positions may look at.

    Args:
        real: (B, S) bool, True where a position holds a token and False where it holds padding.
        tokens: Number T of query positions; they are the last T of the S.

    Returns:
        (B, 1, T, S) bool: keys that are real and not later than the query. Every position
        also sees itself, so that the softmax of a padding row is over something.
    """
    total = real.shape[1]
    key = torch.arange(total, device=real.device)
    query = key[total - tokens :, None]
    return ((key <= query) & real[:, None, None, :]) | (key == query)
