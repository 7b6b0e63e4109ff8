"""A linear layer with a norm of its own in front: Hugging Face's ``use_rms_norm``.

Each such layer normalises what it is given before it quantises it, with gains that no other
layer shares. Norm and layer are two modules here, so that ``convert`` and ``pack`` treat the
layer as any other; in a checkpoint their tensors are ``<module>.rms_norm.weight`` and
``<module>.weight``, without the name ``linear`` between (:mod:`bitnet_torch.io.names`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitnet_torch.nn.norm import RMSNorm


class NormedLinear(nn.Module):
    """``linear(rms_norm(x))``.

    Args:
        rms_norm: Over the inputs of ``linear``.
        linear: ``nn.Linear``, BitLinear or PackedBitLinear.
    """

    def __init__(self, rms_norm: RMSNorm, linear: nn.Module) -> None:
        super().__init__()
        self.rms_norm = rms_norm
        self.linear = linear

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in the input's dtype."""
        y: Tensor = self.linear(self.rms_norm(input))
        return y


def with_norm(
    linear: nn.Module,
    in_features: int,
    eps: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> NormedLinear:
    """Return ``linear`` behind a new norm whose gains are 1.

    Args:
        linear: The layer.
        in_features: Its K.
        eps: Added to the mean square.
        device: Where the gains lie.
        dtype: Their dtype.
    """
    return NormedLinear(RMSNorm(in_features, eps, device, dtype), linear)
