"""A ternary layer in training with any quantiser of weights, and the warm-up to it.

``QuantLinear`` is :class:`BitLinear` with three things free to choose: the rule that makes codes
(:mod:`bitnet_torch.quant`), per matrix, row or group; four or eight bits for activations; and
``strength``, the lambda of the warm-up. With strength 1 and codes that can be packed its forward
pass is the integer expression of its packed form, to the bit. With a scale per group, g ascending::

    y = rne_dtype( sum over g of  fl32(fl32(acc_g) * fl32(x_scale * w_scale[n, g])) )

Below strength 1, and for codes that cannot be packed, it computes in floats::

    x' = x + strength * (Q(x) - x)        w' = w + strength * (Q(w) - w)        y = x' @ w'^T + bias

with straight-through gradients. There is no packed form equal to that, so ``packed()`` refuses.
``torch.compile`` is for BitLinear: a quantiser here asks of the data whether all is finite.

Source of the warm-up: Mekkouri et al. 2024, "Fine-tuning LLMs to 1.58bit" (Hugging Face blog).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError, QuantizationError
from bitnet_torch.nn._autocast import autocast_input
from bitnet_torch.nn.bit_linear import BitLinear, _StraightThrough
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.nn.packed_quant_linear import (
    PackedQuantLinear,
    finished,
    in_groups,
    in_order,
)
from bitnet_torch.ops._checks import check_features
from bitnet_torch.ops.pack_codes import pack_codes
from bitnet_torch.quant.activation import ACTIVATION_BITS, quantize_activation_to
from bitnet_torch.quant.data_free import Absmean
from bitnet_torch.quant.weight import WeightQuantizer


class QuantLinear(BitLinear):
    """A ``BitLinear`` with a quantiser of its own.

    Args:
        in_features: K, at most 131072.
        out_features: N.
        bias: Whether to learn an additive bias.
        device: Where the parameters live.
        dtype: Of the latent weights.
        quantizer: The rule for weights, absmean per matrix if None; the layer keeps it.
        activation_bits: 8 or 4.

    Attributes:
        strength: Lambda, in [0, 1]: 0 is full precision, 1 is ternary.
    """

    quantizer: WeightQuantizer
    activation_bits: int = 8
    strength: float = 1.0
    rotation: int = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        quantizer: WeightQuantizer | None = None,
        activation_bits: int = 8,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.equip(quantizer or Absmean(), activation_bits)

    def equip(self, quantizer: WeightQuantizer, activation_bits: int = 8) -> None:
        """Give the layer its quantisers; what is learnt starts from the present weights.

        Raises:
            ConfigurationError: ``activation_bits`` is neither 4 nor 8.
            ShapeError: The quantiser does not fit K.
        """
        if activation_bits not in ACTIVATION_BITS:
            raise ConfigurationError(
                f"activation_bits must be one of {ACTIVATION_BITS}, got {activation_bits}"
            )
        quantizer.prepare(self.weight.detach())
        self.quantizer = quantizer
        self.granularity = quantizer.granularity
        self.activation_bits = activation_bits

    @property
    def not_packable(self) -> str | None:
        """Why the layer has no packed form with its bits as it is, or None if it has one."""
        if self.strength < 1:
            return (
                f"is in its warm-up (strength {self.strength:g}) and computes in floats until "
                "the strength is 1"
            )
        if reason := self.quantizer.not_packable:
            return f"is for training only: its quantizer {self.quantizer.name} {reason}"
        return None

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in the input's dtype.

        Raises:
            ShapeError: The input does not have ``in_features`` columns.
            QuantizationError: A weight is not finite.
        """
        check_features(input, self.in_features)
        x = self.rotated(autocast_input(input))
        codes = quantize_activation_to(self.activation_bits, x.detach())
        if self.not_packable is None:
            return finished(self._parts(x, *codes), x.dtype, self.bias)
        return self._in_floats(x, *codes)

    def rotated(self, x: Tensor) -> Tensor:
        """Return what is quantised for the input ``x``."""
        return x

    def _in_floats(self, x: Tensor, x_q: Tensor, x_scale: Tensor) -> Tensor:
        # Where lambda is 0 nothing is quantised, and a row that cannot be stays as it is.
        if self.strength:
            real = (x_q * x_scale[..., None]).to(x.dtype)
            x = x + (self.strength * (real - x)).detach()
        w = self.quantizer.mixed(self.weight, self.strength).to(x.dtype)
        y = F.linear(x, w)
        return y if self.bias is None else (y.float() + self.bias.float()).to(x.dtype)

    def _parts(self, x: Tensor, x_q: Tensor, x_scale: Tensor) -> Tensor:
        """Return the output before its rounding, float32, summed over groups in order."""
        packed, scale = self.codes()
        scales = in_groups(scale)
        size = max(self.in_features // max(len(scales), 1), 1)
        # split(), whose backward is one concatenation, and not one slice after another.
        groups = zip(
            x.float().split(size, -1),
            x_q.split(size, -1),
            self.quantizer.surrogate(self.weight).split(size, 1),
            packed.split(size, 1),
            scales,
            strict=True,
        )
        products = [
            _StraightThrough.apply(  # type: ignore[no-untyped-call]
                part,
                codes.contiguous(),
                x_scale,
                weight,
                None,
                rows.contiguous(),
                w_scale,
                self.backward,
            )
            for part, codes, weight, rows, w_scale in groups
        ]
        return in_order(products)

    def codes(self) -> tuple[Tensor, Tensor]:
        """Return the weight as it is now as ``packed`` (ceil(N/4), K) and ``w_scale``.

        Raises:
            QuantizationError: A weight is not finite, or the layer has no packed form.
        """
        if reason := self.not_packable:
            raise QuantizationError(f"the layer {reason}")
        quantized = self.quantizer.quantize(self.weight.detach())
        return pack_codes(quantized.codes), quantized.scale

    # Not always a PackedBitLinear, which has one way to quantise its input and a scale per row.
    @torch.no_grad()
    def packed(self) -> PackedBitLinear | PackedQuantLinear:  # type: ignore[override]
        """Return the inference form: of class PackedBitLinear where that computes the same.

        Raises:
            QuantizationError: A weight is not finite, or the layer has no packed form.
        """
        packed, w_scale = self.codes()
        bias = None if self.bias is None else self.bias.detach().clone()
        if w_scale.dim() < 2 and self.activation_bits == 8 and self.rotation == 1:
            return PackedBitLinear(packed, w_scale, self.out_features, bias).train(self.training)
        return PackedQuantLinear(
            packed, w_scale, self.out_features, bias, self.activation_bits, self.rotation
        ).train(self.training)

    def extra_repr(self) -> str:
        """Show what differs from a BitLinear."""
        text = nn.Linear.extra_repr(self)
        for name, usual in (("activation_bits", 8), ("strength", 1.0), ("rotation", 1)):
            if (value := getattr(self, name)) != usual:
                text += f", {name}={value:g}"
        return text
