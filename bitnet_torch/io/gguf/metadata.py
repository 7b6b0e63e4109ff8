"""The key-value part of a GGUF file: read item by item, asked for by key and type."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.gguf.bounded import BoundedReader, TextArray

Value = bool | int | float | str | TextArray | NDArray[np.generic]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
# The least bytes of a key-value pair: the length of a key, a type, and one byte of value.
_LEAST_PAIR = 13


class Metadata:
    """The values of a file, with errors that name the key.

    Args:
        values: By key.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def names(self) -> list[str]:
        """Return every key, in the order of the file."""
        return list(self._values)

    def forget(self, prefix: str) -> None:
        """Drop the values whose keys begin with ``prefix``; a vocabulary takes ten MiB."""
        self._values = {k: v for k, v in self._values.items() if not k.startswith(prefix)}

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer, or ``default`` if the key is absent and a default is given.

        Raises:
            CheckpointError: The value is missing or of another type.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(key, "an integer", value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a number; as :meth:`integer` otherwise."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(key, "a number", value)
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a boolean; as :meth:`integer` otherwise."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise _wrong(key, "a boolean", value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; as :meth:`integer` otherwise."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise _wrong(key, "a string", value)
        return value

    def texts(self, key: str) -> TextArray:
        """Return an array of strings."""
        value = self._get(key, None)
        if not isinstance(value, TextArray):
            raise _wrong(key, "an array of strings", value)
        return value

    def numbers(self, key: str) -> NDArray[np.generic]:
        """Return an array of numbers."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            raise _wrong(key, "an array of numbers", value)
        return value

    def _get(self, key: str, default: Value | None) -> Value:
        value = self._values.get(key, default)
        if value is None:
            raise CheckpointError(f"metadata key {key!r} is missing", key=key)
        return value


def read_metadata(reader: BoundedReader, pairs: int) -> Metadata:
    """Read ``pairs`` keys with their values.

    Raises:
        CheckpointError: One does not fit the file, is of an unknown type, or comes twice.
    """
    reader.need(pairs * _LEAST_PAIR, f"{pairs} metadata keys")
    values: dict[str, Value] = {}
    for index in range(pairs):
        key = reader.text(f"metadata key {index}")
        if key in values:
            raise CheckpointError(f"metadata key {key!r} occurs twice", key=key)
        values[key] = _read_value(reader, key)
    return Metadata(values)


def _read_value(reader: BoundedReader, key: str) -> Value:
    what = f"metadata {key!r}"
    kind = reader.integer("I", what)
    if kind != _ARRAY:
        return _read_one(reader, kind, what)
    items = reader.integer("I", what)
    if items == _STRING:
        return reader.texts(reader.count(8, what), what)
    if items != _BOOL and items not in _NUMBERS:
        # An array of arrays among them, which no key of a language model is.
        raise CheckpointError(f"{what} is an array of type {items}, which is not supported")
    dtype: np.dtype[np.generic] = np.dtype(_NUMBERS.get(items, "?")).newbyteorder("<")
    return reader.array(dtype, reader.count(dtype.itemsize, what), what)


def _read_one(reader: BoundedReader, kind: int, what: str) -> Value:
    if kind == _STRING:
        return reader.text(what)
    if kind == _BOOL:
        byte = reader.integer("B", what)
        if byte > 1:
            raise CheckpointError(f"{what} must be 0 or 1, got {byte}")
        return bool(byte)
    if kind not in _NUMBERS:
        raise CheckpointError(f"{what} has type {kind}, which does not exist")
    return reader.number(_NUMBERS[kind], what)


def _wrong(key: str, wanted: str, value: Value) -> CheckpointError:
    shown = f"{len(value)} items" if isinstance(value, TextArray | np.ndarray) else repr(value)[:80]
    return CheckpointError(f"metadata {key!r} must be {wanted}, got {shown}", key=key)
