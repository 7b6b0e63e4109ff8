"""CPU launcher of :func:`bitnet_torch.ops.ternary_linear_grad_weight`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import ternary_linear_grad_weight as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "ternary_linear_grad_weight",
    *(POINTER, INT, POINTER, POINTER, POINTER, INT, SIZE, SIZE, SIZE, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(grad: Tensor, x_q: Tensor, x_scale: Tensor, dtype: torch.dtype) -> Tensor:
    grad, x_q, x_scale = grad.contiguous(), x_q.contiguous(), x_scale.contiguous()
    n, k = grad.shape[-1], x_q.shape[-1]
    dw = torch.empty((n, k), dtype=dtype)
    status = _kernel(
        grad.data_ptr(),
        DTYPE_CODE[grad.dtype],
        x_q.data_ptr(),
        x_scale.data_ptr(),
        dw.data_ptr(),
        DTYPE_CODE[dtype],
        x_scale.numel(),
        n,
        k,
        torch.get_num_threads(),
    )
    if status:
        raise failure("ternary_linear_grad_weight", status)
    return dw
