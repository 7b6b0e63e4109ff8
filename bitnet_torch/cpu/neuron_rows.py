"""The layouts in which a token can pass over dead neurons, and the way between them and panel8.

neuron_rows.hpp draws the bytes. ``neuron_rows`` is for a matrix whose outputs are neurons
(``up_proj``), ``neuron_columns`` for one whose inputs are (``down_proj``). Only decoder steps of
one token multiply in them; everything else takes panel8 buffers made for the call.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bitnet_torch.cpu import panel8
from bitnet_torch.cpu._library import INT, POINTER, SIZE, failure, function
from bitnet_torch.ops.layouts import Layout, register_conversion, register_layout

ROWS, COLUMNS = "neuron_rows", "neuron_columns"

_convert = function("neuron_rows_convert", POINTER, SIZE, SIZE, POINTER, SIZE, INT, INT, INT)


def nbytes(N: int, K: int, *, by_column: bool) -> int:
    """Return the size of the buffer for N rows of K codes."""
    neurons, width = (K, N) if by_column else (N, K)
    return neurons * -(-width // 256) * 64


def from_panels(panels: Tensor, N: int, K: int, *, by_column: bool) -> Tensor:
    """Return the codes of a panel8 buffer in one of the two layouts."""
    panels = panels.contiguous()
    neurons = torch.empty(nbytes(N, K, by_column=by_column), dtype=torch.uint8, device="cpu")
    _run(panels, N, K, neurons, by_column, pack=True)
    return neurons


def to_panels(neurons: Tensor, N: int, K: int, *, by_column: bool) -> Tensor:
    """Return the codes of a buffer in one of the two layouts as panel8."""
    neurons = neurons.contiguous()
    panels = torch.empty(panel8.nbytes(N, K), dtype=torch.uint8, device="cpu")
    _run(panels, N, K, neurons, by_column, pack=False)
    return panels


def _run(panels: Tensor, N: int, K: int, neurons: Tensor, by_column: bool, pack: bool) -> None:
    status = _convert(
        panels.data_ptr(),
        N,
        K,
        neurons.data_ptr(),
        neurons.numel(),
        by_column,
        pack,
        torch.get_num_threads(),
    )
    if status:
        raise failure("neuron_rows", status)


def _register(name: str, by_column: bool) -> None:
    pack = functools.partial(from_panels, by_column=by_column)
    unpack = functools.partial(to_panels, by_column=by_column)

    def prepack(packed: Tensor, N: int) -> Tensor:
        return pack(panel8.prepack(packed, N), N, packed.shape[1])

    def to_exchange(buffer: Tensor, N: int, K: int) -> Tensor:
        return panel8.unpack(unpack(buffer, N, K), N, K)

    size = functools.partial(nbytes, by_column=by_column)
    register_layout(Layout(name, prepack, to_exchange, size), device=None)
    register_conversion(panel8.NAME, name, pack)
    register_conversion(name, panel8.NAME, unpack)


_register(ROWS, by_column=False)
_register(COLUMNS, by_column=True)
