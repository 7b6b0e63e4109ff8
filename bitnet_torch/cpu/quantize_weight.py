"""CPU launcher of :func:`bitnet_torch.ops.quantize_weight`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import BAD_VALUE, DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import quantize_weight as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.quantize_weight import raise_if_not_finite

_kernel = function("quantize_weight", POINTER, INT, SIZE, SIZE, INT, POINTER, POINTER, INT)


@implement(op, backend="cpu", device="cpu")
def _launch(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    w = w.contiguous()
    by_row = granularity == "row"
    t = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    w_scale = torch.empty(w.shape[:1] if by_row else (), dtype=torch.float32, device=w.device)
    status = _kernel(
        w.data_ptr(),
        DTYPE_CODE[w.dtype],
        *w.shape,
        by_row,
        t.data_ptr(),
        w_scale.data_ptr(),
        torch.get_num_threads(),
    )
    if status == BAD_VALUE:
        raise_if_not_finite(w, torch.full((), float("nan"), device=w.device))
    if status:
        raise failure("quantize_weight", status)
    return t, w_scale
