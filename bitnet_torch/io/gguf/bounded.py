"""Reading little-endian numbers and strings from a file that may lie about their lengths.

Nothing is allocated before it is known that the file has the bytes for it, and the head of a
file, which becomes Python objects several times its size, may not be larger than any real one.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from bitnet_torch.errors import CheckpointError

# The largest vocabularies there are (260 000 tokens, 510 000 merges) take 16 MiB.
MAX_HEAD_BYTES = 64 << 20
MAX_ARRAY = 1 << 21


class TextArray:
    """Strings as one run of bytes, made into objects one by one, and only while they are used.

    The merges of a vocabulary as a list of strings would take several times their bytes.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        first = 0
        for end in self._ends[1:]:
            yield self._data[first:end].decode("utf-8")
            first = end

    def append(self, raw: bytes) -> None:
        """Add a string, given as UTF-8."""
        self._data += raw
        self._ends.append(len(self._data))


class BoundedReader:
    """Takes numbers and strings one after the other; whatever does not fit is an error.

    Args:
        file: Open for reading, at its beginning.
        size: Bytes of the file.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._end = min(size, MAX_HEAD_BYTES)
        self._size = size
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        """Return the next ``count`` bytes.

        Raises:
            CheckpointError: The file has fewer.
        """
        self.need(count, what)
        data = self._file.read(count)
        if len(data) != count:
            raise CheckpointError(f"{what}: wanted {count} bytes, got {len(data)}")
        self.position += count
        return data

    def need(self, count: int, what: str) -> None:
        """Raise CheckpointError unless ``count`` more bytes are there."""
        left = self._end - self.position
        if count <= left:
            return
        bound = "the file" if self._end == self._size else f"a head of {self._end} bytes"
        raise CheckpointError(
            f"{what} at byte {self.position} needs {count} bytes; {bound} has {left} left"
        )

    def number(self, code: str, what: str) -> int | float:
        """Return the number of ``struct``'s format ``code``."""
        value: int | float
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))
        return value

    def integer(self, code: str, what: str) -> int:
        """Return the integer of ``struct``'s format ``code``."""
        return int(self.number(code, what))

    def text(self, what: str) -> str:
        """Return a string: its length in eight bytes, then its bytes.

        Raises:
            CheckpointError: It is longer than the file, or not UTF-8.
        """
        return _decoded(self._text_bytes(what), what)

    def texts(self, count: int, what: str) -> TextArray:
        """Return ``count`` strings.

        Raises:
            CheckpointError: One is longer than the file, or not UTF-8.
        """
        found = TextArray()
        for index in range(count):
            raw = self._text_bytes(f"{what} [{index}]")
            _decoded(raw, f"{what} [{index}]")
            found.append(raw)
        return found

    def _text_bytes(self, what: str) -> bytes:
        return self.take(self.integer("Q", what), what)

    def count(self, least: int, what: str) -> int:
        """Return a number of items in eight bytes, each of which takes ``least`` bytes."""
        found = self.integer("Q", what)
        if found > MAX_ARRAY:
            raise CheckpointError(f"{what} says {found} items; at most {MAX_ARRAY} are read")
        self.need(found * least, what)
        return found

    def array(self, dtype: np.dtype[np.generic], count: int, what: str) -> NDArray[np.generic]:
        """Return ``count`` numbers."""
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)


def _decoded(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not UTF-8: {error}") from error
