"""CPU launcher of :func:`bitnet_torch.ops.quantize_activation`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import quantize_activation as op
from bitnet_torch.ops._registry import implement

_kernel = function("quantize_activation", POINTER, INT, SIZE, SIZE, POINTER, POINTER, INT)


@implement(op, backend="cpu", device="cpu")
def _launch(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    x_q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    x_scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    status = _kernel(
        x.data_ptr(),
        DTYPE_CODE[x.dtype],
        x_scale.numel(),
        x.shape[-1],
        x_q.data_ptr(),
        x_scale.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("quantize_activation", status)
    return x_q, x_scale
