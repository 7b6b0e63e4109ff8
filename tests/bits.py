"""Equality of bits: what `torch.equal` is too kind and too strict for.

`torch.equal` calls -0.0 and 0.0 the same, and NaN different from itself.
"""

import torch
from torch import Tensor

_INTEGER = {4: torch.int32, 2: torch.int16, 1: torch.int8, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """Return the integer view of ``x`` with every NaN replaced by the canonical one."""
    x = x.detach().contiguous()
    if x.is_floating_point():
        x = x.masked_fill(torch.isnan(x), float("nan"))
    return x.view(_INTEGER[x.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bits (any NaN is a NaN)."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
