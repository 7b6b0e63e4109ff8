"""Triton launcher of ``rms_norm_quantize``. Contract: bitnet_torch/ops/rms_norm_quantize.py."""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import rms_norm_quantize as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.quantize_rows import quantize_rows


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return quantize_rows(x, weight=weight, eps=eps)
