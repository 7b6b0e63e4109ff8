"""CPU launcher of :func:`bitnet_torch.ops.glu`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import (
    ACTIVATION_CODE,
    DTYPE_CODE,
    INT,
    POINTER,
    SIZE,
    failure,
    function,
)
from bitnet_torch.ops import glu as op
from bitnet_torch.ops._registry import implement

_kernel = function("glu", POINTER, POINTER, INT, INT, SIZE, POINTER, INT)


@implement(op, backend="cpu", device="cpu")
def _launch(g: Tensor, u: Tensor, activation: str) -> Tensor:
    g, u = g.contiguous(), u.contiguous()
    h = torch.empty_like(g)
    status = _kernel(
        g.data_ptr(),
        u.data_ptr(),
        DTYPE_CODE[g.dtype],
        ACTIVATION_CODE[activation],
        g.numel(),
        h.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("glu", status)
    return h
