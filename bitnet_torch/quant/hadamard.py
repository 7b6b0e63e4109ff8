"""The Hadamard transform of rows, in blocks: it spreads an outlier over its block.

With the Sylvester matrix ``H_1 = (1)``, ``H_2b = [[H_b, H_b], [H_b, -H_b]]`` and a row split into
blocks of ``block`` neighbouring elements::

    y = rne_dtype(fl32(H_block x) * fl32(1 / sqrt(block)))         per block, x in float32

computed as log2(block) stages of sums and differences of two elements, h = 1, 2, 4, ... apart.
The order of the sums is that of the stages, whatever the batch, device or number of threads, so
the bits are the same everywhere. The matrix is symmetric and its own inverse, so the gradient is
the same transform of the gradient.

BitNet v2 rotates what ``o_proj`` and ``down_proj`` read, whose outliers int4 cannot hold. A width
that is not a power of two has blocks of its largest power of two: 6912 = 27 * 256.

Source: Wang et al. 2025, "BitNet v2" (arXiv:2504.18415).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, ShapeError


def hadamard_block(width: int) -> int:
    """Return the largest power of two that divides ``width``.

    Raises:
        ConfigurationError: ``width`` is odd: nothing would be rotated.
    """
    block = width & -width
    if block < 2:
        raise ConfigurationError(
            f"a Hadamard transform needs an even number of inputs, got in_features={width}"
        )
    return block


def hadamard(x: Tensor, block: int) -> Tensor:
    """Return the transform of ``x`` (..., K) in its dtype, with its gradient.

    Args:
        x: Float; float64 is transformed in float64.
        block: A power of two that divides K.

    Raises:
        ShapeError: ``block`` is not a power of two or does not divide K.
    """
    if x.dim() < 1 or block < 1 or block & (block - 1) or x.shape[-1] % block:
        raise ShapeError(
            f"block must be a power of two that divides K, got block={block} for shape "
            f"{tuple(x.shape)}"
        )
    y: Tensor = _Hadamard.apply(x, block)  # type: ignore[no-untyped-call]
    return y


class _Hadamard(torch.autograd.Function):
    """The transform; differentiable any number of times, because it is its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int) -> Tensor:
        ctx.block = block
        return _transform(x, block)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return hadamard(grad, ctx.block), None


def _transform(x: Tensor, block: int) -> Tensor:
    y = x if x.dtype == torch.float64 else x.to(torch.float32)
    lead = (*x.shape[:-1], x.shape[-1] // block)
    h = 1
    while h < block:
        pairs = y.reshape(*lead, block // (2 * h), 2, h)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack((first + second, first - second), dim=-2)
        h *= 2
    factor: float = block**-0.5
    return (y.reshape(x.shape) * factor).to(x.dtype)
