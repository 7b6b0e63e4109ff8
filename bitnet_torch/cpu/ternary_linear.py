"""CPU launcher of :func:`bitnet_torch.ops.ternary_linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.cpu.panel8 import prepack
from bitnet_torch.ops import ternary_linear as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "ternary_linear",
    *(POINTER, POINTER, POINTER, SIZE, POINTER, SIZE, POINTER, INT, POINTER, INT),
    *(SIZE, SIZE, SIZE, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    x_q, x_scale, w_scale = x_q.contiguous(), x_scale.contiguous(), w_scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    panels = prepack(packed, N)
    y = torch.empty((*x_q.shape[:-1], N), dtype=dtype, device=x_q.device)
    status = _kernel(
        x_q.data_ptr(),
        x_scale.data_ptr(),
        panels.data_ptr(),
        panels.numel(),
        w_scale.data_ptr(),
        w_scale.numel(),
        None if bias is None else bias.data_ptr(),
        0 if bias is None else DTYPE_CODE[bias.dtype],
        y.data_ptr(),
        DTYPE_CODE[dtype],
        x_scale.numel(),
        N,
        x_q.shape[-1],
        torch.get_num_threads(),
    )
    if status:
        raise failure("ternary_linear", status)
    return y
