"""JSON files of a checkpoint folder, which may be damaged or made to do harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitnet_torch.errors import CheckpointError

# The index of a model of a thousand files has a few megabytes.
_LARGEST = 64 << 20


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: The file is missing, too large to be what it should be, or holds
            anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", file=str(path))
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"it has {size} bytes, more than {_LARGEST}")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path}: must hold an object, got {type(values).__name__}", file=str(path)
        )
    return values
