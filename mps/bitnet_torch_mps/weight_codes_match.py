"""Metal launcher of ``weight_codes_match``. Contract: bitnet_torch/ops/weight_codes_match.py.

No kernel of its own: nothing on a GPU keeps codes between steps. This is the definition, with
the kernels of ``quantize_pack_weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import weight_codes_match as op
from bitnet_torch_mps._device import metal
from bitnet_torch_mps.quantize_pack_weight import launch_quantize_pack_weight


@metal(op)
def launch_weight_codes_match(
    w: Tensor, packed: Tensor, w_scale: Tensor, granularity: str = "matrix"
) -> Tensor:
    """Quantise once more and compare."""
    finite = torch.isfinite(w)
    made, scale = launch_quantize_pack_weight(w.masked_fill(~finite, 0.0), granularity)
    match: Tensor = finite.all() & (made == packed).all() & (scale == w_scale).all()
    return match
