"""The bounds of an int8 head on the CPU: ``head_bounds`` of ops/screened_top_k.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops.screened_top_k import register_head_bounds

_kernel = function("head_bounds", POINTER, INT, POINTER, POINTER, SIZE, SIZE, POINTER, INT)


def _launch(weight: Tensor, h: Tensor, h_scale: Tensor) -> Tensor:
    weight, h, h_scale = weight.contiguous(), h.contiguous(), h_scale.contiguous()
    bounds = torch.empty((2, weight.shape[0]), dtype=torch.float32, device=weight.device)
    status = _kernel(
        weight.data_ptr(),
        DTYPE_CODE[weight.dtype],
        h.data_ptr(),
        h_scale.data_ptr(),
        *weight.shape,
        bounds.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("head_bounds", status)
    return bounds


register_head_bounds(_launch, device="cpu")
