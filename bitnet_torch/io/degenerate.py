"""Tensors that no trained model has: matrices of nothing but zeros, numbers that are not finite.

Files with such tensors are in circulation (conversions that lost a part). A model made of
them computes without a complaint and says nonsense, so loading one is an error unless it is
asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ALL_ZERO_BYTE = 0b01_01_01_01


def fault_of(tensor: Tensor) -> str | None:
    """Return what is wrong with a tensor, or None.

    Args:
        tensor: Codes in the exchange layout of rows that fill their bytes (uint8), or floats. A
            float vector may be all zero: biases are.
    """
    if not tensor.numel():
        return None
    # The least and the largest element tell, without a copy of the tensor.
    least, largest = (float(value) for value in tensor.aminmax())
    if tensor.dtype == torch.uint8:
        return "is all zero" if least == largest == _ALL_ZERO_BYTE else None
    if not (abs(least) < float("inf") and abs(largest) < float("inf")):
        return "holds values that are not finite"
    return "is all zero" if tensor.dim() > 1 and least == largest == 0 else None
