"""Metal launcher of ``int8_linear``. Contract: bitnet_torch/ops/int8_linear.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import int8_linear as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import DTYPES, launch

# As in int8_linear.metal.
_ROWS, _TOKENS = 4, 4
_SIMDGROUPS = 2


@metal(op)
def launch_int8_linear(
    x_q: Tensor, x_scale: Tensor, h: Tensor, h_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Multiply by an int8 head; a product without elements is the reference's."""
    n, k = h.shape
    y = torch.empty((*x_q.shape[:-1], n), dtype=dtype, device=x_q.device)
    if not x_q.numel() or not y.numel():
        return by_reference(op, x_q, x_scale, h, h_scale, dtype)
    m, threads = x_scale.numel(), 32 * _SIMDGROUPS
    launch(
        "int8_linear",
        f"int8_linear_{DTYPES[dtype]}",
        *(x_q.contiguous(), x_scale.contiguous(), h.contiguous(), h_scale.contiguous(), y),
        [m, n],
        k,
        grid=(-(-n // (_ROWS * _SIMDGROUPS)) * threads, -(-m // _TOKENS)),
        group=(threads, 1),
    )
    return y
