"""CPU launcher of :func:`bitnet_torch.ops.rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, FLOAT, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import rms_norm as op
from bitnet_torch.ops._registry import implement

_kernel = function("rms_norm", POINTER, INT, POINTER, INT, FLOAT, SIZE, SIZE, POINTER, INT)


@implement(op, backend="cpu", device="cpu")
def _launch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    k = x.shape[-1]
    status = _kernel(
        x.data_ptr(),
        DTYPE_CODE[x.dtype],
        weight.data_ptr(),
        DTYPE_CODE[weight.dtype],
        eps,
        x.numel() // k if k else 0,
        k,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("rms_norm", status)
    return y
