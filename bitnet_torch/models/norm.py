"""Root-mean-square normalisation, the only norm of these models.

``y = weight * dtype(x / sqrt(mean(x^2) + eps))`` over the last dimension, in float32 inside
and with the result of the division rounded to x's dtype before the weight is applied, as
the checkpoints were trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the rows of ``x`` (..., K) by their root mean square, in x's dtype."""
    exact = x.to(torch.float32)
    scaled = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return (weight.to(torch.float32) * scaled.to(x.dtype).to(torch.float32)).to(x.dtype)


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
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Show the size and eps in ``print(model)``."""
        return f"{self.weight.shape[0]}, eps={self.eps}"
