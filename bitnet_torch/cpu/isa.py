"""Which instruction set the kernels use, and a switch for tests and bisection."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from bitnet_torch.cpu._library import INT, OK, function
from bitnet_torch.errors import ConfigurationError


def available() -> list[str]:
    """Return the instruction sets that this machine and this build have, slowest first."""
    name_of = function("isa_name", INT, restype=ctypes.c_char_p)
    names: list[str] = []
    while (name := name_of(len(names))) is not None:
        names.append(name.decode())
    return names


def current() -> str:
    """Return the name of the instruction set in use."""
    name: bytes = function("isa", restype=ctypes.c_char_p)()
    return name.decode()


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Use instruction set ``name`` inside the block, in every thread of the process.

    Example::

        with forced("scalar"):
            y = layer(x)

    Raises:
        ConfigurationError: This machine or this build does not have it.
    """
    before = current()
    _force(name)
    try:
        yield
    finally:
        _force(before)


def _force(name: str) -> None:
    if function("isa_force", ctypes.c_char_p)(name.encode()) != OK:
        raise ConfigurationError(
            f"instruction set must be one of {', '.join(available())}, got {name!r}", isa=name
        )
