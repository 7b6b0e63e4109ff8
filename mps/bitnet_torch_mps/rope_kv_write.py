"""Metal launcher of ``rope_kv_write``. Contract: bitnet_torch/ops/rope_kv_write.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import rope_kv_write as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import CACHE_DTYPES, DTYPES, launch


@metal(op)
def launch_rope_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
) -> Tensor:
    """Rotate, and append to the cache, without waiting for the device to know ``start``."""
    if not q.numel() or not k.numel():
        return by_reference(op, q, k, v, cos, sin, keys, values, key_scale, value_scale, start)
    q, k, v, cos, sin = (x.contiguous() for x in (q, k, v, cos, sin))
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    # A layer's part of a cache is dense. Any other is written as a copy and copied back. Scales
    # that are not there are not touched; a buffer must be bound all the same.
    cache = [keys, values, *(cos if scale is None else scale for scale in (key_scale, value_scale))]
    dense = [c.contiguous() for c in cache]
    batch, heads, tokens, d = q.shape
    launch(
        "rope_kv_write",
        f"rope_kv_write_{DTYPES[q.dtype]}_{CACHE_DTYPES[keys.dtype]}",
        *(q, k, v, cos, sin, *dense, start, y),
        [heads, k.shape[1], keys.shape[2], d // 2],
        int(cos.shape[0] > 1),
        grid=(tokens * 32, heads + 2 * k.shape[1], batch),
        group=(32, 1, 1),
    )
    for original, copy in zip(cache, dense, strict=True):
        if copy is not original:
            original.copy_(copy)
    return y
