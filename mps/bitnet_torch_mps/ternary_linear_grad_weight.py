"""Metal launcher of ``ternary_linear_grad_weight``.

Contract: bitnet_torch/ops/ternary_linear_grad_weight.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import ternary_linear_grad_weight as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import dtype_code, launch, plane_group

# As in ternary_linear_grad_weight.metal.
_ROWS = 4


@metal(op)
def launch_ternary_linear_grad_weight(
    grad: Tensor, x_q: Tensor, x_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of the latent weight; without elements it is the reference's."""
    n, k = grad.shape[-1], x_q.shape[-1]
    dw = torch.empty((n, k), dtype=dtype, device=grad.device)
    if not x_q.numel() or not dw.numel():
        return by_reference(op, grad, x_q, x_scale, dtype)
    launch(
        "ternary_linear_grad_weight",
        "ternary_linear_grad_weight",
        *(grad.contiguous(), x_q.contiguous(), x_scale.contiguous(), dw),
        [x_scale.numel(), n],
        [dtype_code(grad), dtype_code(dw)],
        grid=(k, -(-n // _ROWS)),
        group=plane_group(k),
    )
    return dw
