"""CPU launcher of :func:`bitnet_torch.ops.rope`.

Heads come as a view of the projection's output, and one table serves every head and
sequence: the kernel takes both by strides, so neither is copied.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from bitnet_torch.cpu._library import (
    DTYPE_CODE,
    INT,
    POINTER,
    SIZE,
    SIZES,
    failure,
    function,
)
from bitnet_torch.ops import rope as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "rope",
    *(POINTER, INT, POINTER, POINTER, INT, SIZES, SIZES, SIZES, SIZE, POINTER, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    *leading, d = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    # Made contiguous, both have the strides of their one shape.
    cos, sin = (table.contiguous().expand(*leading, d // 2) for table in (cos, sin))
    y = torch.empty(x.shape, dtype=x.dtype)
    status = _kernel(
        x.data_ptr(),
        DTYPE_CODE[x.dtype],
        cos.data_ptr(),
        sin.data_ptr(),
        len(leading),
        _sizes(leading),
        _sizes(x.stride()[:-1]),
        _sizes(cos.stride()[:-1]),
        d,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("rope", status)
    return y


def _sizes(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
