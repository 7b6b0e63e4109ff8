"""What autocast does to a ternary layer: it casts the input, and nothing else.

PyTorch's autocast knows nothing of our ops, so both forms of the layer call this first. The
quantisers work in float32 whatever they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_input(x: Tensor) -> Tensor:
    """Return ``x`` in the autocast dtype of its device, or as it is outside autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
