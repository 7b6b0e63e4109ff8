"""Writing a GGUF file: the head first, then one tensor after the other.

The place of every tensor follows from its shape and type, so the head is known before any
tensor is made, and no two tensors are in memory at once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from torch import Tensor

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.gguf.file import DEFAULT_ALIGNMENT, MAGIC, VERSION
from bitnet_torch.io.gguf.types import BlockType

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9

Writable = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written.

    Attributes:
        name: In the file.
        kind: Type of its blocks.
        shape: As PyTorch has it, slowest dimension first.
    """

    name: str
    kind: BlockType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return self.kind.size(math.prod(self.shape))


def write_gguf(
    file: BinaryIO,
    metadata: Callable[[], Mapping[str, Writable]],
    plan: Sequence[Planned],
    tensors: Iterable[Iterable[Tensor]],
) -> None:
    """Write a whole file.

    Args:
        file: Open for writing, empty.
        metadata: Returns the values by key. Integers become uint32 (in arrays int32), floats
            float32. It is called twice, and what it returns when the tensors are written (their
            checksums, say) stands in the file; it must be as long as the first time.
        plan: The tensors, in their order.
        tensors: For each, the pieces of its bytes, uint8 (n,), taken when its turn comes.

    Raises:
        CheckpointError: A value cannot be stored, or a tensor has other bytes than planned.
        OSError: The file cannot be written.
    """
    head = _head(metadata(), plan)
    file.write(head + bytes(_padding(len(head))))
    for tensor, pieces in zip(plan, tensors, strict=True):
        written = 0
        for piece in pieces:
            written += file.write(piece.cpu().contiguous().numpy().data)
        if written != tensor.nbytes:
            raise CheckpointError(
                f"tensor {tensor.name!r} has {written} bytes, planned were {tensor.nbytes}",
                tensor=tensor.name,
            )
        file.write(bytes(_padding(tensor.nbytes)))
    final = _head(metadata(), plan)
    if len(final) != len(head):
        raise CheckpointError(f"the metadata was {len(head)} bytes and became {len(final)}")
    file.seek(0)
    file.write(final)


def _head(metadata: Mapping[str, Writable], plan: Sequence[Planned]) -> bytes:
    parts = [MAGIC + struct.pack("<IQQ", VERSION, len(plan), len(metadata))]
    parts += [_text(key) + _value(key, value) for key, value in metadata.items()]
    offset = 0
    for tensor in plan:
        sizes = tensor.shape[::-1]
        numbers = (len(sizes), *sizes, tensor.kind.number, offset)
        parts += [_text(tensor.name), struct.pack(f"<I{len(sizes)}QIQ", *numbers)]
        offset += tensor.nbytes + _padding(tensor.nbytes)
    return b"".join(parts)


def _padding(position: int) -> int:
    return -position % DEFAULT_ALIGNMENT


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Writable) -> bytes:
    """Return the type of a value and the value."""
    if isinstance(value, str | bool | int | float):
        kind, raw = _scalar(key, value)
        return struct.pack("<I", kind) + raw
    items: list[str | int | float] = list(value)
    first = items[0] if items else ""
    kind = _INT32 if type(first) is int else _scalar(key, first)[0]
    if kind == _STRING:
        body = b"".join(_text(str(item)) for item in items)
    else:
        body = struct.pack(f"<{len(items)}{'i' if kind == _INT32 else 'f'}", *items)
    return struct.pack("<IIQ", _ARRAY, kind, len(items)) + body


def _scalar(key: str, value: str | bool | int | float) -> tuple[int, bytes]:
    if isinstance(value, str):
        return _STRING, _text(value)
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if not 0 <= value < 1 << 32:
        raise CheckpointError(f"metadata {key!r} must be in [0, 2^32), got {value}", key=key)
    return _UINT32, struct.pack("<I", value)
