"""Means with defined bits: sums of integers, which no order of threads can change.

A row of float32 numbers with the largest magnitude ``a = f * 2^e``, 0.5 <= f < 1, is counted
in units of ``2^(e - 30)``, as in :mod:`bitnet_torch.ops.quantize_weight`: each number is below
2^30 units, so that 2^33 of them fit 63 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch.ops._exact import frexp_exponent, pow2
from bitnet_torch.ops.quantize_weight import MIN_SCALE


@dataclass(frozen=True)
class FixedPoint:
    """Rows of numbers in integer units.

    Attributes:
        units: (R, L) int64.
        exponent: (R,) int32: a unit is ``2^-exponent``.
    """

    units: Tensor
    exponent: Tensor

    def mean(self, total: Tensor, count: Tensor | int) -> Tensor:
        """Return ``total / count`` as float32 (R,), of sums (R,) int64 in units.

        An empty mean is 0.
        """
        sums = total.to(torch.float32)
        counts = torch.as_tensor(count, device=sums.device).to(torch.float32).expand_as(sums)
        return sums / counts.clamp_min(1) * pow2(-self.exponent)


def fixed_point(rows: Tensor) -> FixedPoint:
    """Return finite float32 ``rows`` (R, L), L >= 1, in units of their own."""
    peak = rows.abs().amax(-1).clamp_min(MIN_SCALE)
    exponent = 30 - frexp_exponent(peak)
    units = (rows * pow2(exponent)[:, None]).round().to(torch.int64)
    return FixedPoint(units, exponent)


def mean_magnitude(rows: Tensor) -> Tensor:
    """Return the mean of |row| for finite float32 ``rows`` (R, L), L >= 1, as float32 (R,)."""
    fixed = fixed_point(rows)
    return fixed.mean(fixed.units.abs().sum(-1), rows.shape[1])
