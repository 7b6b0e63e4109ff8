"""Contenders that do nothing but reach a limit of the machine: bytes read, codes multiplied."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

from bitnet_torch.bench.buffers import last_level_cache
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call
from bitnet_torch.errors import BackendUnavailableError

STREAMS = 4


def reading(nbytes: int, threads: int) -> Contender:
    """Read ``nbytes`` that no cache holds, in four streams a thread, from large pages."""
    from bitnet_torch.cpu._library import INT, POINTER, SIZE, function
    from bitnet_torch.cpu.large_pages import ask_large_pages

    read = function("limit_read", POINTER, SIZE, INT, INT, POINTER)
    parts = max(1, -(-4 * last_level_cache() // nbytes))
    memory = torch.empty(parts * nbytes, dtype=torch.uint8)
    ask_large_pages(memory)
    memory.fill_(1)
    fold = ctypes.c_uint64()

    def part(index: int) -> Call:
        # The tensor is an argument so that it lives as long as the call.
        return functools.partial(_read, read, memory, index * nbytes, nbytes, threads, fold)

    return Contender("reading", [part(i) for i in range(parts)], lambda: "a limit")


def _read(
    read: Callable[..., int],
    memory: torch.Tensor,
    start: int,
    nbytes: int,
    threads: int,
    fold: ctypes.c_uint64,
) -> None:
    read(memory.data_ptr() + start, nbytes, STREAMS, threads, ctypes.byref(fold))


def multiplying(threads: int, **macs: int) -> Contender:
    """Multiply codes from registers, so many with each instruction of ``cpu/limits.cpp``.

    Raises:
        BackendUnavailableError: This machine has no such instruction.
    """
    from bitnet_torch.cpu._library import INT, SIZE, function

    multiply = function("limit_macs", ctypes.c_char_p, SIZE, INT, restype=SIZE)
    rounds = []
    for unit, count in macs.items():
        each = int(multiply(unit.encode(), 1, threads))
        if each < 0:
            raise BackendUnavailableError(f"this machine or build has no {unit}", unit=unit)
        rounds.append((unit.encode(), -(-count // each)))

    def call() -> None:
        for unit, count in rounds:
            multiply(unit, count, threads)

    return Contender("+".join(macs), [call], lambda: "a limit")
