"""The model that comes with the package."""

from __future__ import annotations

from pathlib import Path


def bundled_model() -> Path:
    """Return the folder of the bundled byte-level Shakespeare model, for ``load``."""
    return Path(__file__).parent / "shakespeare"
