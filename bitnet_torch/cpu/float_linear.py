"""CPU launcher of :func:`bitnet_torch.ops.float_linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import float_linear as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "float_linear",
    *(POINTER, INT, POINTER, INT, POINTER, INT, POINTER, INT, SIZE, SIZE, SIZE, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=dtype or x.dtype, device=x.device)
    status = _kernel(
        x.data_ptr(),
        DTYPE_CODE[x.dtype],
        weight.data_ptr(),
        DTYPE_CODE[weight.dtype],
        None if bias is None else bias.data_ptr(),
        0 if bias is None else DTYPE_CODE[bias.dtype],
        y.data_ptr(),
        DTYPE_CODE[y.dtype],
        x.shape[:-1].numel(),
        *weight.shape,
        torch.get_num_threads(),
    )
    if status:
        raise failure("float_linear", status)
    return y
