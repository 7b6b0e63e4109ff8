"""H-BitLinear: a ternary layer that rotates its input before it quantises it.

::

    y = QuantLinear(hadamard(x, block))          block: the largest power of two that divides K

The rotation spreads an outlier over its block, so that int8, and after that int4, codes keep the
other elements. BitNet v2 uses it for ``o_proj`` and ``down_proj``: it trains with
``activation_bits=8`` first and for the last twentieth of the tokens with 4, keeping the optimizer
state. The rotated activations are rounded to the input's dtype, so that the packed form, which
rotates too, has the same bits.

Source: Wang et al. 2025, "BitNet v2" (arXiv:2504.18415).
"""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.nn.quant_linear import QuantLinear
from bitnet_torch.quant.hadamard import hadamard, hadamard_block
from bitnet_torch.quant.weight import WeightQuantizer


class HBitLinear(QuantLinear):
    """A ``QuantLinear`` behind a Hadamard transform; same arguments.

    Raises:
        ConfigurationError: K is odd: there is nothing to rotate.
    """

    def equip(self, quantizer: WeightQuantizer, activation_bits: int = 8) -> None:
        """Give the layer its quantisers and its rotation.

        Raises:
            ConfigurationError: K is odd, or ``activation_bits`` is neither 4 nor 8.
            ShapeError: The quantiser does not fit K.
        """
        self.rotation = hadamard_block(self.in_features)
        super().equip(quantizer, activation_bits)

    def rotated(self, x: Tensor) -> Tensor:
        """Return the transform of ``x`` in its dtype."""
        return hadamard(x, self.rotation)
