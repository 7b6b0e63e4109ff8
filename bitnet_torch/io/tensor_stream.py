"""Write a safetensors file piece by piece, so that no tensor need ever be whole in memory.

The safetensors library wants all tensors at once. Here they are announced first, which fixes the
header, and then made and written one after the other: the codes of a layer that a backend holds
in its own order, or random numbers. The header holds metadata that may depend on what was written
(checksums), so it is written last, into room of a size that is known beforehand.

The format is that of https://github.com/huggingface/safetensors: 8 bytes little-endian length of
the header, the header in JSON, then the tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitnet_torch.errors import BitNetError

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that will be written.

    Attributes:
        name: In the file.
        shape: Its sizes.
        dtype: Its element type.
        pieces: Gives its values, in order, in contiguous pieces of any size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def write_tensor_stream(
    path: Path,
    plans: list[TensorPlan],
    metadata: Callable[[], Mapping[str, str]],
    metadata_bytes: int,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a file at ``path``, which is not atomic by itself.

    Args:
        path: Where to write.
        plans: The tensors. The largest elements come first, so that all are aligned.
        metadata: Called once, after the last tensor is written.
        metadata_bytes: Upper bound of the length of the metadata as JSON.
        advance: Called with the bytes of each piece that is written.

    Raises:
        BitNetError: A tensor's pieces do not make up its size, or the metadata is too long.
        OSError: The file cannot be written.
    """
    ordered = sorted(plans, key=lambda plan: (-plan.dtype.itemsize, plan.name))
    room = _padded(len(_header(ordered, {})) + metadata_bytes + len('"__metadata__":,'))
    with path.open("wb") as file:
        file.seek(8 + room)
        for plan in ordered:
            before = file.tell()
            for piece in plan.pieces():
                # Of one dimension, because a tensor of none cannot be seen as bytes.
                flat = piece.detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
                advance(flat.nbytes)
            if (written := file.tell() - before) != plan.nbytes:
                raise BitNetError(f"{plan.name}: {written} bytes written, {plan.nbytes} announced")
        header = _header(ordered, metadata())
        if len(header) > room:
            raise BitNetError(f"{path}: the header needs {len(header)} bytes, room is {room}")
        file.seek(0)
        # The format allows spaces after the JSON.
        file.write(room.to_bytes(8, "little") + header.ljust(room))


def _header(plans: list[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for plan in plans:
        span = [offset, offset + plan.nbytes]
        entries[plan.name] = {
            "dtype": _NAMES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": span,
        }
        offset = span[1]
    return json.dumps(entries, separators=(",", ":")).encode("utf-8")


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
