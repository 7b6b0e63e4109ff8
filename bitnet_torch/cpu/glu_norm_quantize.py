"""CPU launcher of :func:`bitnet_torch.ops.glu_norm_quantize`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import (
    ACTIVATION_CODE,
    DTYPE_CODE,
    FLOAT,
    INT,
    POINTER,
    SIZE,
    failure,
    function,
)
from bitnet_torch.ops import glu_norm_quantize as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "glu_norm_quantize",
    *(POINTER, POINTER, INT, INT, POINTER, INT, FLOAT, SIZE, SIZE, POINTER, POINTER, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(
    g: Tensor, u: Tensor, weight: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    g, u = g.contiguous(), u.contiguous()
    weight = None if weight is None else weight.contiguous()
    x_q = torch.empty(g.shape, dtype=torch.int8)
    x_scale = torch.empty(g.shape[:-1], dtype=torch.float32)
    status = _kernel(
        g.data_ptr(),
        u.data_ptr(),
        DTYPE_CODE[g.dtype],
        ACTIVATION_CODE[activation],
        None if weight is None else weight.data_ptr(),
        0 if weight is None else DTYPE_CODE[weight.dtype],
        eps,
        x_scale.numel(),
        g.shape[-1],
        x_q.data_ptr(),
        x_scale.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("glu_norm_quantize", status)
    return x_q, x_scale
