"""Gradients whose products keep their dtype, wherever ``backward`` is called."""

from __future__ import annotations

import contextlib

import torch


def without_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Return a block in which products on ``device`` keep the dtype they are given."""
    # Asking for one on a device without autocast, such as meta, would raise.
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
