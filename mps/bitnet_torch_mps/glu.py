"""Metal launcher of ``glu``. Contract: bitnet_torch/ops/glu.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import glu as op
from bitnet_torch_mps._device import metal
from bitnet_torch_mps._launch import DTYPES, launch, plane_group


@metal(op)
def launch_glu(g: Tensor, u: Tensor, activation: str) -> Tensor:
    """Gate ``u`` with the activation of ``g``."""
    h = torch.empty(g.shape, dtype=g.dtype, device=g.device)
    if h.numel():
        width = g.shape[-1] if g.dim() else 1
        name = f"glu_{activation}_{DTYPES[g.dtype]}"
        grid = width, h.numel() // width
        launch("glu", name, g.contiguous(), u.contiguous(), h, grid=grid, group=plane_group(width))
    return h
