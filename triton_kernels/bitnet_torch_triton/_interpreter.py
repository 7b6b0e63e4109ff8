"""Whether Triton interprets its kernels in this process, and what follows for devices."""

from __future__ import annotations

import os


def interpreted() -> bool:
    """Return whether Triton runs (or would run) kernels in Python, on CPU tensors.

    It decides when a kernel is defined, by this variable, read here as Triton reads it:
    asking Triton itself would mean importing it.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def also_accepted() -> tuple[str, ...]:
    """Return the device types besides ``cuda`` whose tensors the kernels can work on."""
    return ("cpu",) if interpreted() else ()
