"""Triton launcher of ``multi_ternary_linear``. Contract: bitnet_torch/ops/multi_ternary_linear.py.

First version: one launch of ``ternary_linear``'s kernels for each matrix, which are queued
without waiting. One launch for all would need their addresses in a table on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitnet_torch.ops import multi_ternary_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.bit_linear import exchange_codes
from bitnet_torch_triton.ternary_linear import multiply


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
    x_q, x_scale = x_q.contiguous(), x_scale.contiguous()
    return [
        multiply(x_q, x_scale, exchange_codes(codes, layout, n, x_q.shape[-1]), scale, n, dtype, b)
        for codes, scale, n, b in zip(prepacked, w_scale, N, bias, strict=True)
    ]
