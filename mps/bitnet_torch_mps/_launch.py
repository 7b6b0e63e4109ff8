"""Compile a file of kernels once, and start one of them.

PyTorch hands a source over as one text in ASCII, so the files that it includes are put in here.
Integers reach a kernel as 32 bits, except those in :class:`Long`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}
# What a cache of keys and values may hold.
CACHE_DTYPES = {**DTYPES, torch.int8: "char"}
# What number.metal calls DTYPE_*: the dtype of a vector that a kernel reads as `void`.
_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, None: 3}
_INCLUDE = re.compile(r'^#include "(\w+)\.metal"\n', re.MULTILINE)
GROUP = 256


class Long(int):
    """An integer that the kernel reads as 64 bits."""


def source_of(name: str) -> str:
    """Return ``<name>.metal`` with the files that it includes in front, each once."""
    seen: set[str] = set()

    def expand(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        text = (Path(__file__).parent / f"{file}.metal").read_text(encoding="ascii")
        return _INCLUDE.sub(lambda match: expand(match[1]), text)

    return expand(name)


@functools.cache
def library(name: str) -> Any:
    """Return the compiled kernels of ``<name>.metal``."""
    return torch.mps.compile_shader(source_of(name))


def dtype_code(vector: Tensor | None) -> int:
    """Return what a kernel is told about a vector that it reads as ``void``."""
    return _DTYPE_CODES[None if vector is None else vector.dtype]


def launch(
    file: str,
    kernel: str,
    *arguments: Tensor | int | float | list[int],
    grid: Sequence[int],
    group: Sequence[int],
) -> None:
    """Run ``kernel`` of ``<file>.metal``.

    Args:
        file: Name of the file without its suffix.
        kernel: The kernel's name for the host.
        arguments: Buffers 0, 1, ... Tensors must be contiguous and must not be empty.
        grid: Threads in each dimension.
        group: Threads of a threadgroup in each dimension.
    """
    casts = {
        i: "int32"
        for i, a in enumerate(arguments)
        if isinstance(a, int | list) and not isinstance(a, Long)
    }
    function = getattr(library(file), kernel)
    function(*arguments, threads=tuple(grid), group_size=tuple(group), arg_casts=casts)


def row_group(k: int) -> int:
    """Return how many threads share a row of ``k`` elements: a multiple of 32."""
    return min(GROUP, -(-k // 128) * 32)


def plane_group(width: int) -> tuple[int, int]:
    """Return the threadgroup of a kernel with a thread for each element of a plane."""
    across = min(width, GROUP)
    return across, GROUP // across
