"""Triton launcher of ``quantize_activation``. Contract: bitnet_torch/ops/quantize_activation.py."""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import quantize_activation as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.quantize_rows import quantize_rows


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_rows(x)
