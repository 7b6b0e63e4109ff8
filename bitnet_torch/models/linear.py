"""What a decoder needs of the class of its linear layers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class LinearClass(Protocol):
    """``nn.Linear``, ``BitLinear``, or anything made with the same arguments."""

    def __call__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """Make a layer of ``in_features`` inputs and ``out_features`` outputs."""
        ...
