"""CPU launcher of :func:`bitnet_torch.ops.int8_linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import int8_linear as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "int8_linear", POINTER, POINTER, POINTER, POINTER, POINTER, INT, SIZE, SIZE, SIZE, INT
)


@implement(op, backend="cpu", device="cpu")
def _launch(x_q: Tensor, x_scale: Tensor, h: Tensor, h_scale: Tensor, dtype: torch.dtype) -> Tensor:
    x_q, x_scale, h, h_scale = (t.contiguous() for t in (x_q, x_scale, h, h_scale))
    y = torch.empty((*x_q.shape[:-1], h.shape[0]), dtype=dtype, device=x_q.device)
    status = _kernel(
        x_q.data_ptr(),
        x_scale.data_ptr(),
        h.data_ptr(),
        h_scale.data_ptr(),
        y.data_ptr(),
        DTYPE_CODE[dtype],
        x_scale.numel(),
        *h.shape,
        torch.get_num_threads(),
    )
    if status:
        raise failure("int8_linear", status)
    return y
