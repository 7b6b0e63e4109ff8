"""Metal launcher of ``quantize_pack_weight``.

Contract: bitnet_torch/ops/quantize_pack_weight.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import quantize_pack_weight as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import DTYPES, launch, plane_group
from bitnet_torch_mps.quantize_weight import weight_scales


@metal(op)
def launch_quantize_pack_weight(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    """Ternarise and pack; an empty matrix is answered by the reference."""
    if not w.numel():
        return by_reference(op, w, granularity)
    w = w.contiguous()
    scale = weight_scales("quantize_pack_weight", w, granularity)
    n, k = w.shape
    packed = torch.empty((-(-n // 4), k), dtype=torch.uint8, device=w.device)
    launch(
        "quantize_pack_weight",
        f"ternarise_pack_{DTYPES[w.dtype]}",
        w,
        scale,
        packed,
        [n, int(granularity == "row")],
        grid=(k, packed.shape[0]),
        group=plane_group(k),
    )
    return packed, scale
