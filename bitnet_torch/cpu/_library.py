"""Load the kernel library and describe its functions to ctypes."""

from __future__ import annotations

import ctypes
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitnet_torch.cpu import workspace
from bitnet_torch.errors import (
    BackendUnavailableError,
    BitNetError,
    ConfigurationError,
    OutOfMemoryError,
    ShapeError,
)

POINTER = ctypes.c_void_p
SIZE = ctypes.c_int64
SIZES = ctypes.POINTER(ctypes.c_int64)
FLOAT = ctypes.c_float
INT = ctypes.c_int
# The numbers of common.hpp.
DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# The numbers of isa.hpp.
ACTIVATION_CODE = {"relu2": 0, "silu": 1}
OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BAD_VALUE = 0, 1, 2, 3
# Must equal bitnet_cpu_abi() in isa.cpp; both change with any argument list.
ABI = 13

_HERE = Path(__file__).parent
_FILE = "_kernels" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def build_record() -> dict[str, Any]:
    """Return what the installation wrote about the build: compiler and flags, or the reason."""
    path = _HERE / "_build.json"
    if not path.exists():
        return {"built": False, "reason": "the package was not installed, so nothing was built"}
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded library.

    Raises:
        BackendUnavailableError: There is no library.
        OSError: There is one, and the system cannot load it.
        ConfigurationError: It was built from other sources than these launchers.
    """
    path = _HERE / _FILE
    if not path.exists():
        reason = build_record()["reason"] or f"{_FILE} is missing"
        raise BackendUnavailableError(f"the CPU kernels are not built: {reason}", file=str(path))
    loaded = ctypes.CDLL(str(path))
    if (found := loaded.bitnet_cpu_abi()) != ABI:
        raise ConfigurationError(
            f"{path} has interface {found}, the launchers need {ABI}; reinstall bitnet-torch",
            found=found,
            wanted=ABI,
        )
    workspace.connect(loaded)
    return loaded


def function(name: str, *argtypes: Any, restype: Any = INT) -> Callable[..., Any]:
    """Return the library's ``bitnet_cpu_<name>`` with its C types."""
    fn = getattr(library(), f"bitnet_cpu_{name}")
    fn.argtypes = argtypes
    fn.restype = restype
    return fn  # type: ignore[no-any-return]


def failure(name: str, status: int) -> BitNetError:
    """Return the exception for a status that is not OK and not BAD_VALUE.

    The ops' checks come first, so the first case means that they and the library disagree.
    """
    if status == OUT_OF_MEMORY:
        reason = workspace.refusal() or "the system has none"
        return OutOfMemoryError(f"{name}: no memory for the working buffers: {reason}")
    return ShapeError(f"{name}: the kernel refused its sizes", status=status)
