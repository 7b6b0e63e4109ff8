"""Metal launcher of ``float_linear``. Contract: bitnet_torch/ops/float_linear.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import float_linear as op
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import DTYPES, dtype_code, launch

# As in float_linear.metal.
_TOKENS, _ROWS = 4, 4
_SIMDGROUPS = 2


@metal(op)
def launch_float_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Compute ``x @ weight.T + bias``; a product without elements is the reference's."""
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=dtype or x.dtype, device=x.device)
    if not x.numel() or not y.numel():
        return by_reference(op, x, weight, bias, dtype)
    x, weight = x.contiguous(), weight.contiguous()
    n, k = weight.shape
    m = x.numel() // k
    threads = 32 * _SIMDGROUPS
    launch(
        "float_linear",
        f"float_linear_{DTYPES[weight.dtype]}",
        x,
        weight,
        # A buffer that is not read must be bound all the same.
        x if bias is None else bias.contiguous(),
        y,
        [m, n, k, dtype_code(x)],
        [dtype_code(bias), dtype_code(y)],
        grid=(-(-n // (_ROWS * _SIMDGROUPS)) * threads, -(-m // _TOKENS)),
        group=(threads, 1),
    )
    return y
