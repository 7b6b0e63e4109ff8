"""Ternary and binary quantisers that look at the weights alone; each has a packed form.

=============  ==============================================================  ===============
name           rule, per matrix, row or group                                  source
=============  ==============================================================  ===============
``absmean``    scale mean|W|, threshold half of it: BitNet b1.58; the default  arXiv:2402.17764
``absmedian``  scale the (lower) median of |W|, threshold half of it           arXiv:2407.09527
``twn``        threshold 0.7 mean|W|, scale the mean of what exceeds it        arXiv:1605.04711
``exact-l2``   codes and scale of least squared error                          below
``binary``     codes sign(W - mean W), scale mean|W|: BitNet b1                arXiv:2310.11453
=============  ==============================================================  ===============

Exact: of the codes that keep k weights those that keep the k largest are best, and then the
best scale is their mean magnitude, which removes ``(sum of them)^2 / k`` of the squared norm.
One pass over the sorted magnitudes finds k; the smallest one, where several are best.

Means are sums of integers (:mod:`bitnet_torch.quant.fixed_point`) and scales are at least
1e-5, as in ``ops.quantize_weight``. The gradient of all of them is the straight-through one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitnet_torch.ops.quantize_weight import MIN_SCALE, quantize_weight
from bitnet_torch.quant.fixed_point import fixed_point, mean_magnitude
from bitnet_torch.quant.weight import WeightQuantizer

TWN_THRESHOLD = 0.7


def ternary(rows: Tensor, threshold: Tensor) -> Tensor:
    """Return int8 codes (R, L): the signs of what exceeds ``threshold`` (R,) in magnitude."""
    t = threshold[:, None]
    return (rows > t).to(torch.int8) - (rows < -t).to(torch.int8)


class Absmean(WeightQuantizer):
    """The mean of the magnitudes is the quantum, half of it the threshold."""

    name: ClassVar[str] = "absmean"

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        codes, scale = quantize_weight(rows, "row")
        return codes, scale


class Absmedian(WeightQuantizer):
    """The median of the magnitudes is the quantum, half of it the threshold."""

    name: ClassVar[str] = "absmedian"

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        scale = rows.abs().median(-1).values.clamp_min(MIN_SCALE)
        return ternary(rows, scale * 0.5), scale


class TWN(WeightQuantizer):
    """Ternary Weight Networks: a threshold for Gaussian weights, then the best scale."""

    name: ClassVar[str] = "twn"

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        codes = ternary(rows, mean_magnitude(rows) * TWN_THRESHOLD)
        fixed = fixed_point(rows)
        kept = (fixed.units * codes).sum(-1)
        return codes, fixed.mean(kept, codes.ne(0).sum(-1)).clamp_min(MIN_SCALE)


class ExactL2(WeightQuantizer):
    """The ternary rows nearest to the weights in squared error."""

    name: ClassVar[str] = "exact-l2"

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        fixed = fixed_point(rows)
        ordered, order = fixed.units.abs().sort(dim=-1, descending=True, stable=True)
        sums = ordered.cumsum(-1)
        counts = torch.arange(1, rows.shape[1] + 1, device=rows.device)
        # Integers below 2^63; one rounding each to float64, the same everywhere.
        removed = sums.to(torch.float64).square() / counts.to(torch.float64)
        best = removed.amax(-1, keepdim=True)
        k = torch.where(removed == best, counts, rows.shape[1]).amin(-1)
        # By rank and not by magnitude: equal magnitudes at the cut are not all kept.
        kept = torch.zeros_like(rows, dtype=torch.int8)
        kept.scatter_(1, order, (counts <= k[:, None]).to(torch.int8))
        total = sums.gather(1, k[:, None] - 1)[:, 0]
        return rows.sign().to(torch.int8) * kept, fixed.mean(total, k).clamp_min(MIN_SCALE)


class Binary(WeightQuantizer):
    """Signs around the mean, without zeros; -1 where a weight equals the mean."""

    name: ClassVar[str] = "binary"

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L), -1 or 1, and quanta (R,)."""
        fixed = fixed_point(rows)
        mean = fixed.mean(fixed.units.sum(-1), rows.shape[1])
        above = (rows > mean[:, None]).to(torch.int8)
        return above * 2 - 1, mean_magnitude(rows).clamp_min(MIN_SCALE)
