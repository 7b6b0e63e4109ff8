"""CPU launcher of :func:`bitnet_torch.ops.screened_top_k`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import screened_top_k as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "screened_top_k",
    *(POINTER, INT, POINTER, INT, POINTER, POINTER, POINTER),
    *(POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, SIZE, INT),
)


@implement(op, backend="cpu", device="cpu")
def _launch(
    x: Tensor, weight: Tensor, h: Tensor, h_scale: Tensor, bounds: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, h, h_scale, bounds = (t.contiguous() for t in (x, weight, h, h_scale, bounds))
    lead = x.shape[:-1]
    values = torch.empty((*lead, k), dtype=torch.float32, device=x.device)
    ids = torch.empty((*lead, k), dtype=torch.int64, device=x.device)
    rescored = torch.empty(lead, dtype=torch.int64, device=x.device)
    status = _kernel(
        x.data_ptr(),
        DTYPE_CODE[x.dtype],
        weight.data_ptr(),
        DTYPE_CODE[weight.dtype],
        h.data_ptr(),
        h_scale.data_ptr(),
        bounds.data_ptr(),
        values.data_ptr(),
        ids.data_ptr(),
        rescored.data_ptr(),
        rescored.numel(),
        *weight.shape,
        k,
        torch.get_num_threads(),
    )
    if status:
        raise failure("screened_top_k", status)
    return values, ids, rescored
