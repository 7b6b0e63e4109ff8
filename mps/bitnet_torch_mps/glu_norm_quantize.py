"""Metal launcher of ``glu_norm_quantize``. Contract: bitnet_torch/ops/glu_norm_quantize.py."""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import glu_norm_quantize as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps.quantize_rows import quantize_rows


@metal(op)
def launch_glu_norm_quantize(
    g: Tensor, u: Tensor, weight: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Gate, normalise and quantise each row; an empty tensor is answered by the reference."""
    if not g.numel():
        return by_reference(op, g, u, weight, eps, activation)
    return quantize_rows(f"glu_norm_quantize_{activation}", g, u, weight, eps)
