"""Triton launcher of ``weight_codes_match``. Contract: bitnet_torch/ops/weight_codes_match.py.

No kernel of its own: on a GPU an answer that the host must wait for costs more than quantising
again, so nothing there keeps codes between steps. This is the definition, with the kernels of
``quantize_pack_weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import weight_codes_match as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.quantize_pack_weight import quantize_pack


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(w: Tensor, packed: Tensor, w_scale: Tensor, granularity: str = "matrix") -> Tensor:
    finite = torch.isfinite(w)
    made, scale = quantize_pack(w.masked_fill(~finite, 0.0), granularity)
    match: Tensor = finite.all() & (made == packed).all() & (scale == w_scale).all()
    return match
