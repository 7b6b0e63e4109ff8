"""Root-mean-square normalisation, the only norm of these models: its gain, around the op.

The maths are in :mod:`bitnet_torch.ops.rms_norm`: a norm whose bits depend on neither the
batch nor the machine, in training as in inference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitnet_torch.ops.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """A norm over the last ``size`` elements with one gain each.

    Args:
        size: Length K of the rows.
        eps: Added to the mean square.
        device: Where the gain lies.
        dtype: Its dtype.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x`` (..., K)."""
        y: Tensor = rms_norm(x, self.weight, self.eps)
        return y

    def extra_repr(self) -> str:
        """Show the size and eps in ``print(model)``."""
        return f"{self.weight.shape[0]}, eps={self.eps}"
