"""A GGUF file, opened once, every offset and length checked before a tensor is read.

::

    "GGUF", version 2 or 3 (4 bytes), tensors (8), metadata keys (8)
    each key: text, type (4), value
    each tensor: name, dimensions (4), sizes (8 each, fastest first), type (4), offset (8)
    padding to general.alignment (32); the tensors, at their offsets from here

Tensors are read with plain reads into memory of ours: a mapped file would count as memory while
the model is read, and change under a model that is loaded.

Source: ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bitnet_torch.errors import BitNetError, CheckpointError
from bitnet_torch.io.gguf.bounded import BoundedReader
from bitnet_torch.io.gguf.metadata import Metadata, read_metadata
from bitnet_torch.io.gguf.types import BY_NUMBER, I2_S, BlockType

MAGIC = b"GGUF"
VERSION = 3
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_LEAST_TENSOR = 32
_MAX_NUMEL = 1 << 40


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file, and what it is.

    Attributes:
        name: Its name in the file.
        kind: Type of its blocks.
        shape: As PyTorch has it, slowest dimension first.
        offset: Of its first byte, from the beginning of the file.
    """

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.kind.size(math.prod(self.shape))


class GgufFile:
    """The metadata and the tensors of one open file; made by :func:`open_gguf`."""

    def __init__(
        self, path: Path, file: BinaryIO, metadata: Metadata, tensors: dict[str, StoredTensor]
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._file = file

    def read(self, tensor: StoredTensor, first: int = 0, count: int | None = None) -> Tensor:
        """Return ``count`` bytes of a tensor, from byte ``first`` on, as uint8.

        Raises:
            CheckpointError: The file has become shorter since it was opened.
        """
        wanted = tensor.nbytes - first if count is None else count
        data = torch.empty(wanted, dtype=torch.uint8, device="cpu")
        self._file.seek(tensor.offset + first)
        got = self._file.readinto(data.numpy().data) if wanted else 0  # type: ignore[attr-defined]
        if got != wanted:
            raise self.error(
                f"tensor {tensor.name!r}: wanted {wanted} bytes, got {got}", tensor=tensor.name
            )
        return data

    def error(self, message: str, **context: Any) -> CheckpointError:
        """Return a CheckpointError that begins with the file's path."""
        return CheckpointError(f"{self.path}: {message}", file=str(self.path), **context)

    @contextmanager
    def naming_file(self) -> Iterator[None]:
        """Put the file's path in front of the errors of a block."""
        try:
            yield
        except BitNetError as error:
            raise self.error(str(error), **error.context) from error


@contextmanager
def open_gguf(path: str | os.PathLike[str]) -> Iterator[GgufFile]:
    """Open a GGUF file for reading.

    Raises:
        CheckpointError: The file is missing, unreadable, damaged or not GGUF.
    """
    place = Path(path)
    try:
        file = place.open("rb")
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error}", file=str(place)) from error
    with file:
        try:
            metadata, tensors = _read_head(file, os.fstat(file.fileno()).st_size)
        except CheckpointError as error:
            raise CheckpointError(f"{place}: {error}", file=str(place), **error.context) from error
        yield GgufFile(place, file, metadata, tensors)


def _read_head(file: BinaryIO, size: int) -> tuple[Metadata, dict[str, StoredTensor]]:
    reader = BoundedReader(file, size)
    if (magic := reader.take(4, "the magic number")) != MAGIC:
        raise CheckpointError(f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    version = reader.integer("I", "the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        big = " in big-endian order" if swapped in _VERSIONS else ""
        shown = swapped if big else version
        raise CheckpointError(f"GGUF version {shown}{big} is not supported; {_VERSIONS} are")
    count = reader.count(_LEAST_TENSOR, "the number of tensors")
    metadata = read_metadata(reader, reader.count(1, "the number of metadata keys"))
    reader.need(count * _LEAST_TENSOR, f"{count} tensors")
    raw = [_read_tensor(reader, index) for index in range(count)]
    alignment = metadata.integer(_ALIGNMENT, DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 16:
        raise CheckpointError(f"{_ALIGNMENT} must be a power of two to 65536, got {alignment}")
    start = -(-reader.position // alignment) * alignment
    return metadata, _place_tensors(raw, start, alignment, size)


def _read_tensor(reader: BoundedReader, index: int) -> StoredTensor:
    name = reader.text(f"the name of tensor {index}")
    what = f"tensor {name!r}"
    dimensions = reader.integer("I", what)
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise CheckpointError(f"{what} has {dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
    shape = tuple(reader.integer("Q", what) for _ in range(dimensions))[::-1]
    if min(shape) < 1 or math.prod(shape) > _MAX_NUMEL:
        raise CheckpointError(f"{what} has shape {shape}, which cannot be", tensor=name)
    number = reader.integer("I", what)
    if number not in BY_NUMBER:
        known = ", ".join(f"{kind.name} ({kind.number})" for kind in BY_NUMBER.values())
        raise CheckpointError(f"{what} has type {number}; supported are {known}", tensor=name)
    kind = BY_NUMBER[number]
    row = math.prod(shape) if kind is I2_S else shape[-1]
    if row % kind.weights:
        raise CheckpointError(
            f"{what} is {kind.name} and has rows of {row} weights, not a multiple of "
            f"{kind.weights}",
            tensor=name,
        )
    return StoredTensor(name, kind, shape, reader.integer("Q", what))


def _place_tensors(
    raw: list[StoredTensor], start: int, alignment: int, size: int
) -> dict[str, StoredTensor]:
    """Return the tensors by name, with their offsets in the file, none beyond its end."""
    placed: dict[str, StoredTensor] = {}
    for t in raw:
        if t.name in placed:
            raise CheckpointError(f"tensor {t.name!r} occurs twice", tensor=t.name)
        if t.offset % alignment:
            raise CheckpointError(
                f"tensor {t.name!r} has offset {t.offset}, not a multiple of {alignment}",
                tensor=t.name,
            )
        if start + t.offset + t.nbytes > size:
            raise CheckpointError(
                f"tensor {t.name!r} ends at byte {start + t.offset + t.nbytes}; the file has "
                f"{size}",
                tensor=t.name,
            )
        placed[t.name] = StoredTensor(t.name, t.kind, t.shape, start + t.offset)
    _check_apart(list(placed.values()))
    return placed


def _check_apart(tensors: list[StoredTensor]) -> None:
    """Raise CheckpointError if two tensors share a byte."""
    ordered = sorted(tensors, key=lambda t: t.offset)
    for a, b in itertools.pairwise(ordered):
        if a.offset + a.nbytes > b.offset:
            raise CheckpointError(
                f"tensors {a.name!r} and {b.name!r} overlap at byte {b.offset}", tensor=b.name
            )
