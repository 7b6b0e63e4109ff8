"""Memory for weights in large pages: what streams from memory in every token.

A page of 4 KiB is as far as a processor fetches ahead by itself, and each new one is looked up in
the tables of the system (of two systems in a virtual machine). In pages of 2 MiB a token of a
2B-4T model, whose weights stream from memory, took 0.90 of the time. Where a system gives large
pages only to who asks (``madvise`` in ``/sys/kernel/mm/transparent_hugepage/enabled``), they are
asked for; where it has none, the same memory comes in small ones.

Matrices are smaller than a large page, so they share pieces of 64 MiB. A piece is one
allocation of PyTorch, which goes when the last of its matrices goes; each matrix has a storage of
its own, so that a copy or a pickle of it takes its bytes along and no others.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitnet_torch.cpu._library import POINTER, SIZE, function

PAGE = 2 << 20
PIECE = 64 << 20
# A smaller matrix comes alone: a model of such matrices is in the cache, or near it.
LEAST = 256 << 10
_LINE = 64

_ask = function("ask_large_pages", POINTER, SIZE, SIZE)


def ask_large_pages(tensor: Tensor) -> bool:
    """Ask for large pages under a new tensor that nobody has written to; whether it could be."""
    return int(_ask(tensor.data_ptr(), tensor.nbytes, PAGE)) == 0


class _Pieces:
    """The piece that is being handed out from, while any of its matrices lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: Callable[[], Any] = lambda: None
        self._used = 0

    def take(self, nbytes: int) -> Tensor:
        with self._lock:
            memory = self._memory()
            if memory is None or self._used + nbytes > PIECE:
                memory = _new_piece()
                self._memory, self._used = weakref.ref(memory), 0
            at = self._used
            self._used += -(-nbytes // _LINE) * _LINE
        # A view of the piece would share its storage, which a copy copies whole.
        return torch.frombuffer(memory, dtype=torch.uint8, count=nbytes, offset=at)


def _new_piece() -> Any:
    whole = torch.empty(PIECE + PAGE, dtype=torch.uint8, device="cpu")
    ask_large_pages(whole)
    memory = (ctypes.c_uint8 * PIECE).from_address(-(-whole.data_ptr() // PAGE) * PAGE)
    # ctypes does not keep alive what it has only been told the address of.
    memory.owner = whole  # type: ignore[attr-defined]
    return memory


_pieces = _Pieces()


def weight_buffer(nbytes: int) -> Tensor:
    """Return that many bytes (nbytes,) uint8 with undefined contents, in a large page if it can."""
    if LEAST <= nbytes <= PIECE:
        return _pieces.take(nbytes)
    buffer = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    if nbytes > PIECE:
        ask_large_pages(buffer)
    return buffer
