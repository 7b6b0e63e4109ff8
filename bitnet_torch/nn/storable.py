"""Which ternary layers the file layouts of this project can hold."""

from __future__ import annotations

from torch import nn

from bitnet_torch.errors import CheckpointError
from bitnet_torch.nn.packed_quant_linear import PackedQuantLinear
from bitnet_torch.nn.quant_linear import QuantLinear
from bitnet_torch.quant.data_free import Absmean


def check_storable(model: nn.Module, *, as_codes: bool) -> None:
    """Refuse layers that a file would not give back.

    A file holds codes with their scales, or float weights that are ternarised anew by absmean.
    Neither says how activations are quantised or rotated.

    Args:
        model: With ternary layers of any form.
        as_codes: Whether the file holds codes, and not float weights.

    Raises:
        CheckpointError: Naming the layer and what the file cannot say of it.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, (QuantLinear, PackedQuantLinear)) and (lost := _lost(layer, as_codes)):
            raise CheckpointError(f"{name} {lost}, which the layout cannot say", module=name)


def _lost(layer: QuantLinear | PackedQuantLinear, as_codes: bool) -> str | None:
    """Return what a file would lose of the layer."""
    if layer.rotation > 1:
        return f"rotates its input in blocks of {layer.rotation}"
    if layer.activation_bits != 8:
        return f"has {layer.activation_bits}-bit activations"
    if isinstance(layer, PackedQuantLinear) or layer.granularity == "group":
        return "has a scale per group"
    if layer.not_packable:
        return layer.not_packable
    if not as_codes and type(layer.quantizer) is not Absmean:
        return f"has the quantizer {layer.quantizer.name}"
    return None
