"""Metal launcher of ``attention``. Contract: bitnet_torch/ops/attention.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import attention as op
from bitnet_torch.ops.attention import score_factor
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import CACHE_DTYPES, DTYPES, launch

# As in attention.metal.
_THREADS = 128


@metal(op)
def launch_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
    first: Tensor | None,
) -> Tensor:
    """Attend with every query, without waiting for the device to know ``start``."""
    if not q.numel() or not keys.numel():
        return by_reference(op, q, keys, values, key_scale, value_scale, start, first)
    batch, heads, tokens, d = q.shape
    out = torch.empty((batch, tokens, heads, d), dtype=q.dtype, device=q.device)
    unread = torch.empty((), dtype=torch.float32, device=q.device)
    # Scales that are not there are not read; a buffer must be bound all the same.
    scales = [unread if s is None else s.contiguous() for s in (key_scale, value_scale)]
    launch(
        "attention",
        f"attention_{DTYPES[q.dtype]}_{CACHE_DTYPES[keys.dtype]}",
        *(q.contiguous(), keys.contiguous(), values.contiguous(), *scales, start),
        start if first is None else first.contiguous(),
        out,
        [heads, keys.shape[1], keys.shape[2], d],
        int(first is not None),
        score_factor(d),
        grid=(tokens * _THREADS, heads, batch),
        group=(_THREADS, 1, 1),
    )
    return out
