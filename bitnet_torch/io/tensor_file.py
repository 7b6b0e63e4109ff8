"""A safetensors file, opened once, read tensor by tensor, with every fault named.

The file is memory-mapped while it is read, and each tensor is copied out of it: a model that
is loaded does not change when somebody writes over its file, and never holds two copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.atomic import set_default_mode

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U8": torch.uint8,
}


class TensorFile:
    """The tensors and the metadata of one open file; made by :func:`open_tensors`."""

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self.names = frozenset(handle.keys())
        self.metadata: dict[str, str] = handle.metadata() or {}

    def check_names(self, expected: set[str]) -> None:
        """Raise CheckpointError unless the file holds exactly the tensors ``expected``."""
        if missing := sorted(expected - self.names):
            raise self.error(f"tensor {missing[0]!r} is missing{_more(missing)}", missing=missing)
        if unexpected := sorted(self.names - expected):
            raise self.error(
                f"tensor {unexpected[0]!r} is not part of this model{_more(unexpected)}",
                unexpected=unexpected,
            )

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor without reading it.

        Raises:
            CheckpointError: It is not one that checkpoints of this kind hold.
        """
        stored = self._handle.get_slice(name).get_dtype()
        if stored not in _DTYPES:
            raise self.error(f"tensor {name!r} is {stored}, which is not supported", tensor=name)
        return _DTYPES[stored]

    def read(self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> Tensor:
        """Return a copy of a tensor.

        Raises:
            CheckpointError: It has another shape, or none of ``dtypes``.
        """
        view = self._handle.get_slice(name)
        found, dtype = tuple(view.get_shape()), self.dtype(name)
        if found != shape:
            raise self.error(
                f"tensor {name!r} has shape {found}, the model needs {shape}", tensor=name
            )
        if dtype not in dtypes:
            wanted = " or ".join(str(d) for d in dtypes)
            raise self.error(f"tensor {name!r} is {dtype}, the model needs {wanted}", tensor=name)
        tensor: Tensor = self._handle.get_tensor(name).clone()
        return tensor

    def error(self, message: str, **context: Any) -> CheckpointError:
        """Return a CheckpointError that begins with the file's path."""
        return CheckpointError(f"{self.path}: {message}", file=str(self.path), **context)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file for reading.

    Raises:
        CheckpointError: The file is missing, unreadable, truncated or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", file=str(path))
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    with handle:
        yield TensorFile(path, handle)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file at ``path``, which is not atomic by itself.

    Args:
        path: Where to write.
        tensors: By name; they are copied to the CPU and made contiguous.
        metadata: Further strings for the header.

    Raises:
        OSError: The file cannot be written.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(ready, os.fspath(path), {"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    set_default_mode(path)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
