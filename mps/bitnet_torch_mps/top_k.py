"""Metal launcher of ``top_k``. Contract: bitnet_torch/ops/top_k.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import top_k as op
from bitnet_torch_mps._device import metal
from bitnet_torch_mps._launch import launch, row_group


@metal(op)
def launch_top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` first of each row and where they stand."""
    shape = (*logits.shape[:-1], k)
    values = torch.empty(shape, dtype=torch.float32, device=logits.device)
    ids = torch.empty(shape, dtype=torch.int64, device=logits.device)
    if ids.numel():
        v, rows = logits.shape[-1], ids.numel() // k
        group = row_group(v)
        grid = {"grid": (rows * group,), "group": (group,)}
        launch("top_k", "top_k", logits.contiguous(), values, ids, [v, k], **grid)
    return values, ids
