"""The tensors of a checkpoint folder, in one file or in several with an index.

``model.safetensors`` is one file. ``model.safetensors.index.json`` names the file of every
tensor in its ``weight_map``; each must be a plain name in the same folder, and the files must hold
exactly what the index says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.json_file import read_object
from bitnet_torch.io.layout import INDEX_FILE, WEIGHTS_FILE
from bitnet_torch.io.names import is_derived, modern_name
from bitnet_torch.io.scales import ExactScale, parse_scales
from bitnet_torch.io.tensor_file import TensorFile, open_tensors

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class _Place:
    file: TensorFile
    stored: str


class TensorSet:
    """The tensors of the open files of one checkpoint, by today's names.

    Attributes:
        path: What an error about no single tensor speaks of: the index or the one file.
        files: The open files.
    """

    def __init__(self, path: Path, files: list[TensorFile]) -> None:
        self.path = path
        self.files = files
        self._places: dict[str, _Place] = {}
        for file in files:
            for stored in sorted(file.names):
                if not is_derived(stored):
                    self._add(file, stored)

    def _add(self, file: TensorFile, stored: str) -> None:
        name = modern_name(stored)
        if name in self._places:
            other = self._places[name]
            raise file.error(
                f"tensor {stored!r} is also in {other.file.path.name} as {other.stored!r}",
                tensor=stored,
            )
        self._places[name] = _Place(file, stored)

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors, without those that follow from the configuration."""
        return frozenset(self._places)

    def check_names(self, expected: set[str]) -> None:
        """Raise CheckpointError unless the files hold exactly the tensors ``expected``."""
        if missing := sorted(expected - self.names):
            raise CheckpointError(
                f"{self.path}: tensor {missing[0]!r} is missing{_more(missing)}",
                file=str(self.path),
                missing=missing,
            )
        if unexpected := sorted(self.names - expected):
            place = self._places[unexpected[0]]
            raise place.file.error(
                f"tensor {place.stored!r} is not part of this model{_more(unexpected)}",
                unexpected=unexpected,
            )

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor without reading it.

        Raises:
            CheckpointError: It is not one that checkpoints of this kind hold.
        """
        place = self._places[name]
        return place.file.dtype(place.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        place = self._places[name]
        return place.file.shape(place.stored)

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds a tensor."""
        return self._places[name].file.path.name

    def nbytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in its file."""
        return torch.Size(self.shape(name)).numel() * self.dtype(name).itemsize

    def check(self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
        """Raise CheckpointError unless a tensor has this shape and one of ``dtypes``."""
        found, dtype = self.shape(name), self.dtype(name)
        if found != shape:
            raise self.error(name, f"has shape {found}, the model needs {shape}")
        if dtype not in dtypes:
            wanted = " or ".join(str(d) for d in dtypes)
            raise self.error(name, f"is {dtype}, the model needs {wanted}")

    def read(self, name: str) -> Tensor:
        """Return a tensor in memory of its own, on the CPU.

        Raises:
            CheckpointError: It cannot be read.
        """
        place = self._places[name]
        return place.file.read(place.stored)

    def mapped(self, name: str) -> Tensor:
        """Return a tensor whose pages come from the file when they are touched.

        Raises:
            CheckpointError: It cannot be read.
        """
        place = self._places[name]
        return place.file.mapped(place.stored)

    def exact_scales(self) -> dict[str, ExactScale]:
        """Return the exact scales that the files carry beside the stored ones.

        Raises:
            CheckpointError: They are damaged.
        """
        scales: dict[str, ExactScale] = {}
        for file in self.files:
            try:
                scales |= parse_scales(file.metadata)
            except CheckpointError as error:
                raise file.error(str(error)) from error
        return scales

    def error(self, name: str, fault: str, **context: Any) -> CheckpointError:
        """Return a CheckpointError that names the file and the tensor, and then says ``fault``."""
        place = self._places[name]
        return place.file.error(f"tensor {place.stored!r} {fault}", tensor=place.stored, **context)

    def error_about(self, name: str, cause: BaseException) -> CheckpointError:
        """Return a CheckpointError that names the file of a tensor, and then says ``cause``."""
        place = self._places[name]
        return place.file.error(str(cause), tensor=place.stored)


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[TensorSet]:
    """Open all files of a checkpoint's tensors.

    Raises:
        CheckpointError: A file is missing or damaged, or the index and the files disagree.
    """
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    with ExitStack() as stack:
        if single.is_file() or not index.is_file():
            _refuse_pickle(folder, single)
            yield TensorSet(single, [stack.enter_context(open_tensors(single))])
            return
        shards = _read_index(index)
        files = [stack.enter_context(open_tensors(folder / name)) for name in sorted(shards)]
        for file in files:
            _check_shard(index, file, shards[file.path.name])
        yield TensorSet(index, files)


def _refuse_pickle(folder: Path, single: Path) -> None:
    if single.is_file():
        return
    for name in _PICKLES:
        if (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is a pickle, which is not read; save the model as safetensors "
                f"({WEIGHTS_FILE})",
                file=str(folder / name),
            )


def _read_index(path: Path) -> dict[str, set[str]]:
    """Return the names of the tensors of every file."""
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map must be an object that names tensors")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not _is_plain_name(name):
            raise CheckpointError(
                f"{path}: tensor {tensor!r} is said to be in {name!r}, which is not the plain name "
                "of a .safetensors file in this folder",
                file=str(path),
                tensor=tensor,
            )
        shards.setdefault(name, set()).add(tensor)
    return shards


def _is_plain_name(name: object) -> bool:
    if not isinstance(name, str) or not name.endswith(".safetensors") or "\0" in name:
        return False
    return not (set("/\\:") & set(name)) and not name.startswith(".")


def _check_shard(index: Path, file: TensorFile, expected: set[str]) -> None:
    if missing := sorted(expected - file.names):
        raise file.error(
            f"tensor {missing[0]!r} is missing{_more(missing)}; {index.name} says that it is here",
            missing=missing,
        )
    if extra := sorted(file.names - expected):
        raise file.error(
            f"tensor {extra[0]!r} is not in {index.name}{_more(extra)}", unexpected=extra
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
