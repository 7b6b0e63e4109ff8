"""CPU launcher of :func:`bitnet_torch.ops.rms_norm_quantize`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, FLOAT, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import rms_norm_quantize as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "rms_norm_quantize",
    *(POINTER, INT, POINTER, INT, FLOAT, SIZE, SIZE, POINTER, POINTER, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    x_q = torch.empty(x.shape, dtype=torch.int8)
    x_scale = torch.empty(x.shape[:-1], dtype=torch.float32)
    status = _kernel(
        x.data_ptr(),
        DTYPE_CODE[x.dtype],
        weight.data_ptr(),
        DTYPE_CODE[weight.dtype],
        eps,
        x_scale.numel(),
        x.shape[-1],
        x_q.data_ptr(),
        x_scale.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("rms_norm_quantize", status)
    return x_q, x_scale
