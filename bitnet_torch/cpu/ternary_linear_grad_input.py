"""CPU launcher of :func:`bitnet_torch.ops.ternary_linear_grad_input`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import ternary_linear_grad_input as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "ternary_linear_grad_input",
    *(POINTER, INT, POINTER, POINTER, SIZE, POINTER, INT, SIZE, SIZE, SIZE, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(grad: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    grad, packed, w_scale = grad.contiguous(), packed.contiguous(), w_scale.contiguous()
    *rows, n = grad.shape
    k = packed.shape[1]
    dx = torch.empty((*rows, k), dtype=dtype)
    status = _kernel(
        grad.data_ptr(),
        DTYPE_CODE[grad.dtype],
        packed.data_ptr(),
        w_scale.data_ptr(),
        w_scale.numel(),
        dx.data_ptr(),
        DTYPE_CODE[dtype],
        torch.Size(rows).numel(),
        n,
        k,
        torch.get_num_threads(),
    )
    if status:
        raise failure("ternary_linear_grad_input", status)
    return dx
