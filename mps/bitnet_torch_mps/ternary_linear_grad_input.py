"""Metal launcher of ``ternary_linear_grad_input``.

Contract: bitnet_torch/ops/ternary_linear_grad_input.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import ternary_linear_grad_input as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import dtype_code, launch, plane_group

# As in ternary_linear_grad_input.metal.
_TOKENS = 4


@metal(op)
def launch_ternary_linear_grad_input(
    grad: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of the layer's input; without elements it is the reference's."""
    k = packed.shape[1]
    dx = torch.empty((*grad.shape[:-1], k), dtype=dtype, device=grad.device)
    if not grad.numel() or not dx.numel():
        return by_reference(op, grad, packed, w_scale, dtype)
    m, n = dx.numel() // k, grad.shape[-1]
    launch(
        "ternary_linear_grad_input",
        "ternary_linear_grad_input",
        *(grad.contiguous(), packed.contiguous(), w_scale.contiguous(), dx),
        [m, n, k, int(w_scale.numel() > 1)],
        [dtype_code(grad), dtype_code(dx)],
        grid=(k, -(-m // _TOKENS)),
        group=plane_group(k),
    )
    return dx
