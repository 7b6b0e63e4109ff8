"""The rotary tables: cosines and sines of every position, carried by the model as data.

At position p, element j of a head turns together with element j + D/2 by the angle
``p * theta^(-2j/D)`` (:mod:`bitnet_torch.ops.rope`), or by a stretched one
(:mod:`bitnet_torch.models.rope_scaling`). The tables are made in float64 on the CPU, where every
machine gets the same bits, and rounded to float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bitnet_torch.models.rope_scaling import RopeScaling, frequencies


def rotary_tables(
    head_dim: int, theta: float, length: int, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (length, head_dim / 2), float32 on the CPU."""
    position = torch.arange(length, dtype=torch.float64, device="cpu")
    angle = position[:, None] * frequencies(head_dim, theta, scaling)
    # Only yarn has an attention factor; it grows the logits of attention by its square.
    gain = scaling.attention_factor if scaling is not None and scaling.attention_factor else 1.0
    cos = angle.cos().mul_(gain).to(torch.float32)
    return cos, angle.sin_().mul_(gain).to(torch.float32)


class RotaryTables(nn.Module):
    """The tables for every position of a context, on the model's device, always float32.

    Args:
        head_dim: Width D of a head.
        theta: Base of the frequencies.
        length: Number of positions.
        device: Where the tables lie.
        scaling: How the frequencies are stretched, if they are.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        head_dim: int,
        theta: float,
        length: int,
        device: torch.device | str | None = None,
        scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        self._made_of = (head_dim, theta, length, scaling)
        self.make_on(torch.get_default_device() if device is None else torch.device(device))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cos, sin), each (B, 1, T, D/2), for ``positions`` (B, T)."""
        return self.cos[positions][:, None], self.sin[positions][:, None]

    def make_on(self, device: torch.device) -> None:
        """Make the tables on a device, from the numbers that they follow from.

        From the meta device this is the light way: ``to_empty`` makes PyTorch import sympy there.
        """
        head_dim, _, length, _ = self._made_of
        if device.type == "meta":
            cos, sin = (torch.empty((length, head_dim // 2), device=device) for _ in range(2))
        else:
            cos, sin = rotary_tables(*self._made_of)
        self.register_buffer("cos", cos.to(device, torch.float32), persistent=False)
        self.register_buffer("sin", sin.to(device, torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryTables:
        # `.to(dtype)` would round the tables and `.to_empty()` would lose them. They are a
        # function of a few numbers, so they are made again wherever the module has gone.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.make_on(self.cos.device)
        return self
