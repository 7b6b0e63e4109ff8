"""Which training form a linear layer takes, and the retyping that keeps its parameters."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

from torch import nn

from bitnet_torch.errors import BitNetError, ConfigurationError
from bitnet_torch.nn.bit_linear import BitLinear
from bitnet_torch.nn.hadamard_linear import HBitLinear
from bitnet_torch.nn.quant_linear import QuantLinear
from bitnet_torch.ops.quantize_weight import GRANULARITIES
from bitnet_torch.quant.activation import ACTIVATION_BITS
from bitnet_torch.quant.data_free import Absmean
from bitnet_torch.quant.hadamard import hadamard_block
from bitnet_torch.quant.weight import WeightQuantizer

TRAINING_FORMS = (BitLinear, QuantLinear, HBitLinear)
"""The classes that ``pack`` knows; a subclass of somebody else may compute something else."""


@dataclass(frozen=True)
class TernaryForm:
    """What ``convert`` makes of a layer.

    Attributes:
        granularity: Of the default quantiser.
        quantizer: Another one, or None.
        activation_bits: 8 or 4.

    Raises:
        ConfigurationError: A value is unknown, or both a granularity and a quantiser are given.
    """

    granularity: str = "matrix"
    quantizer: WeightQuantizer | None = None
    activation_bits: int = 8

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise ConfigurationError(
                f"granularity must be one of {GRANULARITIES}, got {self.granularity!r}"
            )
        if self.quantizer is not None and self.granularity != "matrix":
            raise ConfigurationError(
                f"granularity={self.granularity!r} beside a quantizer, which has its own: "
                f"{self.quantizer.granularity!r}"
            )
        if self.activation_bits not in ACTIVATION_BITS:
            raise ConfigurationError(
                f"activation_bits must be one of {ACTIVATION_BITS}, got {self.activation_bits}"
            )

    def check(self, name: str, layer: nn.Linear, rotated: bool) -> None:
        """Raise what :meth:`give` would, with the layer's name, and change nothing.

        Raises:
            ConfigurationError: A rotated layer has an odd number of inputs.
            ShapeError: The groups of the quantiser do not divide the inputs.
        """
        try:
            if rotated:
                hadamard_block(layer.in_features)
            if self.quantizer is not None:
                self.quantizer.as_rows(layer.weight.detach())
        except BitNetError as error:
            raise type(error)(f"{name}: {error}", module=name, **error.context) from error

    def give(self, layer: nn.Linear, rotated: bool) -> None:
        """Retype ``layer``; it stays the same object with the same Parameters."""
        if self.quantizer is None and self.activation_bits == 8 and not rotated:
            layer.__class__ = BitLinear
            cast(BitLinear, layer).granularity = self.granularity
            return
        layer.__class__ = HBitLinear if rotated else QuantLinear
        own = copy.deepcopy(self.quantizer) or Absmean(self.granularity)
        cast(QuantLinear, layer).equip(own, self.activation_bits)


def set_strength(model: nn.Module, strength: float) -> int:
    """Set lambda of the warm-up in every :class:`QuantLinear` of ``model``.

    At 1 a layer that differs from a ``BitLinear`` in nothing more becomes one, which is faster;
    the bits are the same.

    Args:
        model: Converted with a ``quantizer``; plain BitLinear layers have no strength.
        strength: In [0, 1]; 0 is full precision.

    Returns:
        The number of layers that were set.

    Raises:
        ConfigurationError: ``strength`` is out of range.
    """
    if not 0 <= strength <= 1:
        raise ConfigurationError(f"strength must lie in [0, 1], got {strength}")
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    for layer in layers:
        layer.strength = float(strength)
        if strength == 1 and _is_plain(layer):
            del layer.quantizer
            for name in ("strength", "activation_bits"):
                layer.__dict__.pop(name, None)
            layer.__class__ = BitLinear  # type: ignore[assignment]
    return len(layers)


def _is_plain(layer: QuantLinear) -> bool:
    return (
        type(layer) is QuantLinear
        and type(layer.quantizer) is Absmean
        and layer.granularity in GRANULARITIES
        and layer.activation_bits == 8
    )
