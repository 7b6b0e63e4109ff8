"""Triton launcher of ``ternary_linear``. Contract: bitnet_torch/ops/ternary_linear.py.

This op takes the exchange layout, which is repacked at each call; modules hold the codes as
the kernels read them, and call ``bit_linear_prepacked`` or ``multi_ternary_linear``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import ternary_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.planar64 import prepack
from bitnet_torch_triton.ternary_product import Matrix, multiply


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    (y,) = multiply(x_q, x_scale, [Matrix(prepack(packed, N), w_scale, N, bias)], dtype)
    return y
