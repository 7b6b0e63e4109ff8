"""Metal launcher of ``screened_top_k``. Contract: bitnet_torch/ops/screened_top_k.py.

The bound needs norms in float64, which Metal does not have. So nothing is screened out yet: every
row is scored as the contract defines the result, and ``rescored`` says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import screened_top_k as op
from bitnet_torch_mps._device import metal
from bitnet_torch_mps.float_linear import launch_float_linear
from bitnet_torch_mps.top_k import launch_top_k


@metal(op)
def launch_screened_top_k(
    x: Tensor, weight: Tensor, h: Tensor, h_scale: Tensor, bounds: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``k`` largest logits of each row of ``x``."""
    values, ids = launch_top_k(launch_float_linear(x, weight, None, torch.float32), k)
    scored = weight.shape[0] if k else 0
    rescored = torch.full(x.shape[:-1], scored, dtype=torch.int64, device=x.device)
    return values, ids, rescored
