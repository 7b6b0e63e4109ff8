"""Metal launcher of ``quantize_activation``. Contract: bitnet_torch/ops/quantize_activation.py."""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import quantize_activation as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps.quantize_rows import quantize_rows


@metal(op)
def launch_quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row. An empty tensor has no buffer to bind: the reference answers."""
    if not x.numel():
        return by_reference(op, x)
    return quantize_rows("quantize_activation", x)
