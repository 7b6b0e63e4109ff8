"""Metal launcher of ``rms_norm``. Contract: bitnet_torch/ops/rms_norm.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import rms_norm as op
from bitnet_torch_mps._device import metal
from bitnet_torch_mps._launch import DTYPES, dtype_code, launch, row_group


@metal(op)
def launch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row by its root mean square."""
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    k = x.shape[-1]
    group = row_group(k)
    launch(
        "rms_norm",
        f"rms_norm_{DTYPES[x.dtype]}",
        x,
        weight.contiguous(),
        y,
        [k, dtype_code(weight)],
        eps,
        grid=(x.numel() // k * group,),
        group=(group,),
    )
    return y
