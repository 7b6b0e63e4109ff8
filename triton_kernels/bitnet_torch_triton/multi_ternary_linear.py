"""Triton launcher of ``multi_ternary_linear``. Contract: bitnet_torch/ops/multi_ternary_linear.py.

All matrices share one launch, whose first programs are for the first matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitnet_torch.ops import multi_ternary_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.bit_linear import planar_codes
from bitnet_torch_triton.ternary_product import Matrix, multiply


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    x_q: Tensor,
    x_scale: Tensor,
    prepacked: Sequence[Tensor],
    layout: str,
    w_scale: Sequence[Tensor],
    N: Sequence[int],
    dtype: torch.dtype,
    bias: Sequence[Tensor | None],
) -> list[Tensor]:
    k = x_q.shape[-1]
    matrices = [
        Matrix(planar_codes(codes, layout, n, k), scale, n, b)
        for codes, scale, n, b in zip(prepacked, w_scale, N, bias, strict=True)
    ]
    return multiply(x_q, x_scale, matrices, dtype)
