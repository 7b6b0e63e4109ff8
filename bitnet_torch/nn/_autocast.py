"""What autocast does to a ternary layer: it casts the input, and nothing else.

PyTorch's autocast knows nothing of our ops, so both forms of the layer call this first. The
quantisers work in float32 whatever they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def in_autocast(device: str) -> bool:
    """Return whether autocast is on for devices of this type."""
    # Asking about a device without autocast, such as meta, would raise.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast_input(x: Tensor) -> Tensor:
    """Return ``x`` in the autocast dtype of its device, or as it is outside autocast."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if in_autocast(device) else x
