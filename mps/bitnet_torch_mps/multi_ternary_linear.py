"""Metal launcher of ``multi_ternary_linear``. Contract: bitnet_torch/ops/multi_ternary_linear.py.

One launch of ``ternary_linear``'s kernels for each matrix; PyTorch encodes them into one command
buffer, so none of them waits for the one before to be submitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitnet_torch.ops import multi_ternary_linear as op
from bitnet_torch_mps._device import metal
from bitnet_torch_mps.bit_linear import exchange_codes
from bitnet_torch_mps.ternary_linear import multiply


@metal(op)
def launch_multi_ternary_linear(
    x_q: Tensor,
    x_scale: Tensor,
    prepacked: Sequence[Tensor],
    layout: str,
    w_scale: Sequence[Tensor],
    N: Sequence[int],
    dtype: torch.dtype,
    bias: Sequence[Tensor | None],
) -> list[Tensor]:
    """Multiply one quantised input by several matrices."""
    x_q, x_scale = x_q.contiguous(), x_scale.contiguous()
    return [
        multiply(x_q, x_scale, exchange_codes(codes, layout, n, x_q.shape[-1]), scale, n, dtype, b)
        for codes, scale, n, b in zip(prepacked, w_scale, N, bias, strict=True)
    ]
