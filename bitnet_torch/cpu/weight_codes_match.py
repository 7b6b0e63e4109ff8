"""CPU launcher of :func:`bitnet_torch.ops.weight_codes_match`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import weight_codes_match as op
from bitnet_torch.ops._registry import implement

_kernel = function(
    "weight_codes_match", POINTER, INT, SIZE, SIZE, INT, POINTER, POINTER, POINTER, INT
)


@implement(op, backend="cpu", device="cpu")
def _launch(w: Tensor, packed: Tensor, w_scale: Tensor, granularity: str = "matrix") -> Tensor:
    w, packed, w_scale = w.contiguous(), packed.contiguous(), w_scale.contiguous()
    match = torch.empty((), dtype=torch.bool)
    status = _kernel(
        w.data_ptr(),
        DTYPE_CODE[w.dtype],
        *w.shape,
        granularity == "row",
        packed.data_ptr(),
        w_scale.data_ptr(),
        match.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("weight_codes_match", status)
    return match
