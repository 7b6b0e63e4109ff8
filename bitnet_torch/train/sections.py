"""Turn a TOML table into a frozen dataclass, or say exactly which key is wrong.

The dataclass is the only list of keys: its fields are the valid names, its annotations the
types, a field without a default is a required key.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from bitnet_torch.errors import ConfigurationError

T = TypeVar("T")


def read_section(name: str, kind: type[T], values: dict[str, Any]) -> T:
    """Build ``kind`` from the table ``values[name]``; an absent table is an empty one.

    Raises:
        ConfigurationError: A key is unknown, missing, of the wrong type or out of range.
    """
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"[{name}] must be a table, got {table!r}", section=name)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    refuse_unknown("key", table, tuple(fields), place=f"[{name}]")
    if missing := [key for key, f in fields.items() if key not in table and _is_required(f)]:
        raise ConfigurationError(f"[{name}] needs {', '.join(missing)}", section=name, keys=missing)
    hints = typing.get_type_hints(kind)
    return kind(**{key: _typed(f"{name}.{key}", hints[key], v) for key, v in table.items()})


def refuse_unknown(what: str, given: Iterable[str], known: tuple[str, ...], *, place: str) -> None:
    """Raise for the first of ``given`` that is not ``known``, naming the nearest valid one.

    Raises:
        ConfigurationError: Something given is not known.
    """
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigurationError(
                f"unknown {what} {key!r} in {place}; the nearest valid {what} is {nearest!r}",
                key=key,
                nearest=nearest,
            )


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _typed(key: str, annotation: Any, value: object) -> object:
    """Return ``value`` as the annotation's type; an int may be a float, a list a tuple."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        # TOML has no null, but the record of a run is JSON.
        if value is None and type(None) in arguments:
            return None
        return _typed(key, next(a for a in arguments if a is not type(None)), value)
    if origin is typing.Literal:
        return _typed(key, type(arguments[0]), value)
    if origin is tuple:
        return _typed_tuple(key, arguments, value)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return read_section(key, annotation, {key: value})
    if annotation is float and type(value) is int:
        return float(value)
    # bool is an int to isinstance, and `batch = true` is a mistake.
    if type(value) is not annotation:
        raise ConfigurationError(
            f"{key} must be {_named(annotation)}, got {value!r}", key=key, value=value
        )
    return value


def _typed_tuple(key: str, arguments: tuple[Any, ...], value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigurationError(f"{key} must be an array, got {value!r}", key=key, value=value)
    if arguments[-1] is Ellipsis:
        return tuple(_typed(key, arguments[0], v) for v in value)
    if len(value) != len(arguments):
        raise ConfigurationError(
            f"{key} must have {len(arguments)} elements, got {value!r}", key=key, value=value
        )
    return tuple(_typed(key, a, v) for a, v in zip(arguments, value, strict=True))


def _named(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return names.get(annotation, str(annotation))
