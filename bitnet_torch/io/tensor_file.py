"""A safetensors file, opened once, read tensor by tensor, with every fault named.

The safetensors library checks the header; the values are then read into memory of their own, one
tensor at a time, so that a model never holds two copies and does not change when
somebody writes over its file. :meth:`TensorFile.mapped` is the exception, for a matrix of which few
rows are ever used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitnet_torch.errors import CheckpointError

_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U8": torch.uint8,
}


class TensorFile:
    """The tensors and the metadata of one open file; made by :func:`open_tensors`."""

    def __init__(self, path: Path, handle: Any, raw: BinaryIO) -> None:
        self.path = path
        self._handle = handle
        self._raw = raw
        self._starts = _starts(raw)
        self.names = frozenset(handle.keys())
        self.metadata: dict[str, str] = handle.metadata() or {}

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor without reading it.

        Raises:
            CheckpointError: It is not one that checkpoints of this kind hold.
        """
        stored = self._handle.get_slice(name).get_dtype()
        if stored not in _DTYPES:
            raise self.error(f"tensor {name!r} is {stored}, which is not supported", tensor=name)
        return _DTYPES[stored]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self._handle.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return a tensor in memory of its own, on the CPU.

        Raises:
            CheckpointError: Its dtype is not supported, or the file has become shorter.
        """
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name), device="cpu")
        # A view of one dimension, because a tensor of none has no bytes to view.
        memory = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._raw.seek(self._starts[name])
        done = 0
        while done < len(memory):
            count = self._raw.readinto(memory[done:])  # type: ignore[attr-defined]
            if not count:
                raise self.error(f"the file ends inside tensor {name!r}", tensor=name)
            done += count
        return tensor

    def mapped(self, name: str) -> Tensor:
        """Return a tensor whose pages come from the file when they are touched.

        Writing to it changes memory, never the file. The file must not be changed in place, nor
        cut, while the tensor is in use; replacing it by another is safe.

        Raises:
            CheckpointError: Its dtype is not supported.
        """
        self.dtype(name)
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor

    def error(self, message: str, **context: Any) -> CheckpointError:
        """Return a CheckpointError that begins with the file's path."""
        return CheckpointError(f"{self.path}: {message}", file=str(self.path), **context)


def _starts(raw: BinaryIO) -> dict[str, int]:
    """Return where in a file, whose header has been checked, each tensor begins."""
    length = int.from_bytes(raw.read(8), "little")
    header = json.loads(raw.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


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
        raw = path.open("rb", buffering=0)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    with handle, raw:
        yield TensorFile(path, handle, raw)
