"""Metal launcher of ``quantize_head``. Contract: bitnet_torch/ops/quantize_head.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import quantize_head as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import DTYPES, launch, row_group


@metal(op)
def launch_quantize_head(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row to int8; an empty matrix is answered by the reference."""
    if not weight.numel():
        return by_reference(op, weight)
    n, k = weight.shape
    h = torch.empty((n, k), dtype=torch.int8, device=weight.device)
    h_scale = torch.empty(n, dtype=torch.float32, device=weight.device)
    group = row_group(k)
    name = f"quantize_head_{DTYPES[weight.dtype]}"
    grid = {"grid": (n * group,), "group": (group,)}
    launch("quantize_head", name, weight.contiguous(), h, h_scale, k, **grid)
    return h, h_scale
