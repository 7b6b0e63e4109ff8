"""CPU launcher of :func:`bitnet_torch.ops.quantize_head`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.cpu.large_pages import ask_large_pages
from bitnet_torch.ops import quantize_head as op
from bitnet_torch.ops._registry import implement

_kernel = function("quantize_head", POINTER, INT, SIZE, SIZE, POINTER, POINTER, INT)


@implement(op, backend="cpu", device="cpu")
def _launch(weight: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight.contiguous()
    h = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    ask_large_pages(h)
    h_scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    status = _kernel(
        weight.data_ptr(),
        DTYPE_CODE[weight.dtype],
        *weight.shape,
        h.data_ptr(),
        h_scale.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("quantize_head", status)
    return h, h_scale
