"""CPU launcher of :func:`bitnet_torch.ops.quantize_pack_weight`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import BAD_VALUE, DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import quantize_pack_weight as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.quantize_weight import raise_if_not_finite

_kernel = function("quantize_pack_weight", POINTER, INT, SIZE, SIZE, INT, POINTER, POINTER, INT)


@implement(op, backend="cpu", device="cpu")
def _launch(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    w = w.contiguous()
    n, k = w.shape
    by_row = granularity == "row"
    packed = torch.empty((-(-n // 4), k), dtype=torch.uint8)
    w_scale = torch.empty((n,) if by_row else (), dtype=torch.float32)
    status = _kernel(
        w.data_ptr(),
        DTYPE_CODE[w.dtype],
        n,
        k,
        by_row,
        packed.data_ptr(),
        w_scale.data_ptr(),
        torch.get_num_threads(),
    )
    if status == BAD_VALUE:
        raise_if_not_finite(w, torch.full((), float("nan")))
    if status:
        raise failure("quantize_pack_weight", status)
    return packed, w_scale
