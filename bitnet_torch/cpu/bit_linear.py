"""CPU launchers of :func:`bitnet_torch.ops.bit_linear` and ``bit_linear_prepacked``.

This is the call that a decoder makes a hundred times for each token, so ``_launch`` does
nothing that a small product would notice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu import panel8
from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import bit_linear, bit_linear_prepacked
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.layouts import convert

_kernel = function(
    "bit_linear",
    *(POINTER, INT, POINTER, SIZE, POINTER, SIZE, POINTER, INT, POINTER),
    *(SIZE, SIZE, SIZE, INT),
)


@implement(bit_linear, backend="cpu", device="cpu")
def _launch_exchange(
    x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None = None
) -> Tensor:
    return _launch(x, panel8.prepack(packed, N), w_scale, N, bias)


@implement(bit_linear_prepacked, backend="cpu", device="cpu")
def _launch_prepacked(
    x: Tensor,
    prepacked: Tensor,
    layout: str,
    w_scale: Tensor,
    N: int,
    bias: Tensor | None = None,
) -> Tensor:
    panels = convert(prepacked, N, x.shape[-1], layout, panel8.NAME)
    return _launch(x, panels.contiguous(), w_scale, N, bias)


def _launch(x: Tensor, panels: Tensor, w_scale: Tensor, N: int, bias: Tensor | None) -> Tensor:
    x, w_scale = x.contiguous(), w_scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    *rows, k = x.shape
    y = x.new_empty((*rows, N))
    status = _kernel(
        x.data_ptr(),
        DTYPE_CODE[x.dtype],
        panels.data_ptr(),
        panels.numel(),
        w_scale.data_ptr(),
        w_scale.numel(),
        None if bias is None else bias.data_ptr(),
        0 if bias is None else DTYPE_CODE[bias.dtype],
        y.data_ptr(),
        _count(rows),
        N,
        k,
        torch.get_num_threads(),
    )
    if status:
        raise failure("bit_linear", status)
    return y


def _count(rows: list[int]) -> int:
    count = 1
    for size in rows:
        count *= size
    return count
