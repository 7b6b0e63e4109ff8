"""The inference form of a ternary layer: 2-bit codes in the order its backend reads fastest.

The codes are held once, in the layout that the device's backend prefers
(:mod:`bitnet_torch.ops.layouts`), and shown to the world in the exchange layout:
``weight``, ``state_dict`` and pickles hold that, whatever the backend.

Codes and scale are data, not parameters: ``.to(dtype)``, ``.half()`` and autocast leave
their bits alone. Only the bias follows the module's dtype, as it does in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_torch.errors import BitNetError, ShapeError
from bitnet_torch.nn._autocast import autocast_input
from bitnet_torch.nn.latent import latent_weight
from bitnet_torch.ops._checks import (
    check_bias,
    check_dtype,
    check_features,
    check_k,
    check_packed,
    check_weight_scale,
)
from bitnet_torch.ops.bit_linear import bit_linear_prepacked
from bitnet_torch.ops.layouts import convert, layout_named, preferred_layout
from bitnet_torch.ops.pack_codes import has_corrupt_code, raise_if_corrupt, unpack_codes

_ZERO_WEIGHTS = 0b01_01_01_01


class PackedBitLinear(nn.Module):
    """Linear layer over packed ternary codes, for inference.

    Args:
        packed: Codes in the exchange layout, (ceil(N/4), K) uint8.
        w_scale: Weight quantum, () or (1,) for the matrix or (N,) per row, float32.
        out_features: N, which the packed bytes do not say.
        bias: (N,) float or None.

    Attributes:
        in_features: K.
        out_features: N.
        weight_scale: The quantum, float32, whatever the module's dtype.
        layout: The byte order in which ``prepacked`` holds the codes.

    Raises:
        ShapeError: A shape does not fit the others.
        DTypeError: ``packed`` is not uint8 or ``w_scale`` not float32.
        QuantizationError: ``packed`` holds code 3, which no format writes.
    """

    prepacked: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self, packed: Tensor, w_scale: Tensor, out_features: int, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = packed.shape[-1] if packed.dim() else 0, out_features
        check_packed(packed, self.in_features, out_features)
        check_k("packed", self.in_features)
        check_weight_scale(w_scale, out_features)
        check_bias(bias, out_features)
        self.register_buffer("prepacked", None, persistent=False)
        self._hold(packed.detach())
        self.register_buffer("weight_scale", w_scale.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def _hold(self, packed: Tensor) -> None:
        layout = preferred_layout(packed.device.type)
        self.layout = layout.name
        self.prepacked = layout.prepack(packed, self.out_features)

    def hold_as(self, layout: str) -> None:
        """Hold the codes in another layout; nothing that is computed changes.

        They stay where they are in memory, if they take as many bytes: nobody may be reading.

        Args:
            layout: A name of :mod:`bitnet_torch.ops.layouts`.

        Raises:
            ConfigurationError: No backend that is loaded has it.
        """
        held = self.prepacked
        made = convert(held, self.out_features, self.in_features, self.layout, layout)
        if made is held:
            return
        if made.numel() == held.numel():
            # In its place: memory of weights is given back by the piece, not by the matrix.
            place = held.detach()
            with torch.inference_mode():
                place.copy_(made)
            made = place
        self.prepacked, self.layout = made, layout

    @property
    def weight(self) -> Tensor:
        """The codes in the exchange layout, (ceil(N/4), K) uint8. Read-only."""
        return layout_named(self.layout).unpack(self.prepacked, self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in the input's dtype.

        Raises:
            ShapeError: The input does not have ``in_features`` columns.
        """
        # The op cannot see this: a layout pads K, so several K fit one buffer.
        check_features(input, self.in_features)
        y: Tensor = bit_linear_prepacked(
            autocast_input(input),
            self.prepacked,
            self.layout,
            self.weight_scale,
            self.out_features,
            self.bias,
        )
        return y

    def latent_weight(self) -> Tensor:
        """Return float32 weights (N, K) that quantise to exactly these codes and scale.

        Raises:
            QuantizationError: No float32 weight has this scale with these codes.
        """
        return latent_weight(unpack_codes(self.weight, self.out_features), self.weight_scale)

    def extra_repr(self) -> str:
        """Show sizes as ``nn.Linear`` does, and the layout of the codes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, layout={self.layout!r}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedBitLinear:
        prepacked, scale = self.prepacked, self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != torch.float32:
            self.weight_scale = scale.to(self.weight_scale.device)
        device = self.prepacked.device
        if device.type != prepacked.device.type:
            self._hold(self._exchange(prepacked, device))
        return self

    def _exchange(self, prepacked: Tensor, device: torch.device) -> Tensor:
        """Return the codes on another device; those of the meta device become zero weights."""
        if prepacked.is_meta:
            shape = (-(-self.out_features // 4), self.in_features)
            return torch.full(shape, _ZERO_WEIGHTS, dtype=torch.uint8, device=device)
        layout = layout_named(self.layout)
        return layout.unpack(prepacked, self.out_features, self.in_features).to(device)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "weight"] = self.weight
        if metadata := getattr(destination, "_metadata", None):
            metadata[prefix[:-1]]["out_features"] = self.out_features
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        codes = state_dict.get(prefix + "weight")
        try:
            held = None if codes is None else self._check_loaded(codes, local_metadata)
            if (scale := state_dict.get(prefix + "weight_scale")) is not None:
                check_dtype("weight_scale", scale, torch.float32)
        except BitNetError as error:
            # Nothing of this layer is touched: codes and scale belong together.
            error_msgs.append(f"{prefix[:-1] or 'layer'}: {error}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if held is None:
            missing_keys.extend([prefix + "weight"] if strict else [])
            return
        if prefix + "weight" in unexpected_keys:
            unexpected_keys.remove(prefix + "weight")
        self._hold(held)

    def _check_loaded(self, codes: Tensor, metadata: dict[str, Any]) -> Tensor:
        """Return codes (ceil(N/4), K) that fit this layer, on its device, or raise."""
        check_packed(codes, self.in_features, self.out_features)
        # The bytes do not say N: codes of 10 rows and of 12 have the same shape.
        if (rows := metadata.get("out_features", self.out_features)) != self.out_features:
            raise ShapeError(f"out_features is {self.out_features}, the codes have {rows} rows")
        if not codes.is_meta:
            raise_if_corrupt(codes, has_corrupt_code(codes))
        return codes.detach().to(self.weight_scale.device)

    def __getstate__(self) -> dict[str, Any]:
        # A pickle may be read where this backend is absent, so it holds the exchange layout.
        state = self.__dict__.copy()
        state["_buffers"] = {**self._buffers, "prepacked": self.weight}
        state["layout"] = "exchange"
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._hold(self.prepacked)
