"""The inference form of a ternary layer with a scale per group, int4 activations or a rotation.

It is the composition of what exists: the rotation, a quantiser of activations, and a packed
product per group of columns, in float32, which are added in order and rounded once
(:mod:`bitnet_torch.nn.quant_linear` has the formula). Each group is a
:class:`~bitnet_torch.nn.PackedBitLinear` with a scale per row, so codes lie in the layout of their
device and scales never follow a dtype. No file layout holds such a layer: ``save_pretrained`` and
``export_gguf`` refuse it by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitnet_torch.errors import QuantizationError, ShapeError
from bitnet_torch.nn._autocast import autocast_input
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.ops._checks import check_features
from bitnet_torch.ops.multi_ternary_linear import multi_ternary_linear
from bitnet_torch.quant.activation import quantize_activation_to
from bitnet_torch.quant.hadamard import hadamard


class PackedQuantLinear(nn.Module):
    """Linear layer over packed ternary codes, with more freedom than ``PackedBitLinear``.

    Args:
        packed: Codes in the exchange layout, (ceil(N/4), K) uint8.
        w_scale: (), (N,) or, per group, (N, G), G a divisor of K; float32.
        out_features: N.
        bias: (N,) float or None.
        activation_bits: 8 or 4.
        rotation: Block of the Hadamard transform of the input; 1 for none.

    Raises:
        ShapeError: A shape does not fit the others.
        QuantizationError: ``packed`` holds code 3.
    """

    bias: Tensor | None

    def __init__(
        self,
        packed: Tensor,
        w_scale: Tensor,
        out_features: int,
        bias: Tensor | None = None,
        activation_bits: int = 8,
        rotation: int = 1,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = packed.shape[-1], out_features
        self.activation_bits, self.rotation = activation_bits, rotation
        scales = in_groups(w_scale)
        if len(scales) > 1 and self.in_features % len(scales):
            raise ShapeError(
                f"w_scale has {len(scales)} groups, which do not divide K={self.in_features}"
            )
        size = max(self.in_features // max(len(scales), 1), 1)
        self.parts = nn.ModuleList(
            PackedBitLinear(rows.contiguous(), scale, out_features)
            for rows, scale in zip(packed.split(size, 1), scales, strict=True)
        )
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The codes in the exchange layout, (ceil(N/4), K) uint8. Read-only."""
        return torch.cat([part.weight for part in self._layers()], 1)

    @property
    def weight_scale(self) -> Tensor:
        """The quanta as they were given, (), (N,) or (N, G) float32."""
        scales = [part.weight_scale for part in self._layers()]
        return scales[0] if len(scales) == 1 else torch.stack(scales, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in the input's dtype.

        Raises:
            ShapeError: The input does not have ``in_features`` columns.
        """
        check_features(input, self.in_features)
        x = autocast_input(input)
        x = x if self.rotation == 1 else hadamard(x, self.rotation)
        x_q, x_scale = quantize_activation_to(self.activation_bits, x)
        parts = self._layers()
        products = [
            multi_ternary_linear(
                codes.contiguous(),
                x_scale,
                [part.prepacked],
                part.layout,
                [part.weight_scale],
                [self.out_features],
                torch.float32,
                [None],
            )[0]
            for codes, part in zip(x_q.split(parts[0].in_features or 1, -1), parts, strict=True)
        ]
        return finished(in_order(products), x.dtype, self.bias)

    def latent_weight(self) -> Tensor:
        """Refuse: the weights that ternarise to these codes are those of another quantiser.

        Raises:
            QuantizationError: Always.
        """
        raise QuantizationError(
            f"{type(self).__name__} has no latent weights that BitLinear would ternarise to it"
        )

    def extra_repr(self) -> str:
        """Show sizes, bits and groups."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, activation_bits={self.activation_bits}, "
            f"rotation={self.rotation}, groups={len(self.parts)}"
        )

    def _layers(self) -> list[PackedBitLinear]:
        return [part for part in self.parts if isinstance(part, PackedBitLinear)]


def in_groups(scale: Tensor) -> list[Tensor]:
    """Return the quanta of each group of columns: (), (N,) as they are, (N, G) as G times (N,)."""
    return [s.contiguous() for s in scale.unbind(1)] if scale.dim() == 2 else [scale]


def in_order(products: list[Tensor]) -> Tensor:
    """Return the sum of float32 tensors, added one after another."""
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total


def finished(total: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
    """Round a float32 sum to ``dtype``, and add the bias as ``ternary_linear`` does."""
    y = total.to(dtype)
    return y if bias is None else (y.to(torch.float32) + bias.to(torch.float32)).to(dtype)
