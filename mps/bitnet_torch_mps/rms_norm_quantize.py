"""Metal launcher of ``rms_norm_quantize``. Contract: bitnet_torch/ops/rms_norm_quantize.py."""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import rms_norm_quantize as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps.quantize_rows import quantize_rows


@metal(op)
def launch_rms_norm_quantize(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise and quantise each row; an empty tensor is answered by the reference."""
    if not x.numel():
        return by_reference(op, x, weight, eps)
    return quantize_rows("rms_norm_quantize", x, weight=weight, eps=eps)
