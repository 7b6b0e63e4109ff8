"""Rules for weights that are not trained any further: fitted to them, round by round.

===============  ==================================================================  =============
name             rule, per matrix, row or group                                      packed form
===============  ==================================================================  =============
``alternating``  codes nearest to W / scale, then the best scale for these codes,    yes
                 until the codes stay
``asymmetric``   the same for ``scale * codes + offset``                             no: an offset
===============  ==================================================================  =============

Both start from the mean magnitude and end in a local minimum of the squared error; the global
one without an offset is ``exact-l2``. With m weights w and codes t the best fit is::

    scale = (m sum(w t) - sum(w) sum(t)) / (m sum(t t) - sum(t)^2)
    offset = (sum(w) - scale * sum(t)) / m

Source of the latter: Yan et al. 2025, "PT2-LLM" (arXiv:2510.03267), its iterative ternary fitting.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitnet_torch.ops.quantize_weight import MIN_SCALE
from bitnet_torch.quant.data_free import ternary
from bitnet_torch.quant.fixed_point import FixedPoint, fixed_point, mean_magnitude
from bitnet_torch.quant.weight import QuantizedWeight, WeightQuantizer

# Codes stay after 5 to 20 rounds on matrices of language models; this ends what would not.
MAX_ROUNDS = 64


class Alternating(WeightQuantizer):
    """Codes and scale in turn, each the best for the other."""

    name: ClassVar[str] = "alternating"

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        fixed = fixed_point(rows)
        codes = ternary(rows, mean_magnitude(rows).clamp_min(MIN_SCALE) * 0.5)
        for _ in range(MAX_ROUNDS):
            scale = _best_scale(fixed, codes)
            nearest = ternary(rows, scale * 0.5)
            if torch.equal(nearest, codes):
                break
            codes = nearest
        return codes, _best_scale(fixed, codes)


class Asymmetric(WeightQuantizer):
    """Codes, scale and an offset in turn, for training only."""

    name: ClassVar[str] = "asymmetric"

    @property
    def not_packable(self) -> str | None:
        """Its weights are not codes times a scale."""
        return "adds an offset; packed weights are codes times a scale"

    def quantize(self, w: Tensor) -> QuantizedWeight:
        """Return ``w`` (N, K) as codes, quanta and offsets. Raises as for any quantiser."""
        plain = super().quantize(w)
        rows = self.as_rows(w.to(torch.float32, memory_format=torch.contiguous_format))
        codes, scale = plain.codes.reshape(rows.shape), plain.scale.reshape(-1)
        offset = _best_offset(rows, codes, scale) if rows.numel() else torch.zeros_like(scale)
        return QuantizedWeight(plain.codes, plain.scale, self.per_part(offset, w))

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        offset = _best_offset(rows, torch.zeros_like(rows, dtype=torch.int8), rows.new_zeros(()))
        scale = mean_magnitude(rows - offset[:, None]).clamp_min(MIN_SCALE)
        codes = ternary(rows - offset[:, None], scale * 0.5)
        for _ in range(MAX_ROUNDS):
            scale = _best_slope(rows, codes)
            offset = _best_offset(rows, codes, scale)
            nearest = ternary(rows - offset[:, None], scale * 0.5)
            if torch.equal(nearest, codes):
                break
            codes = nearest
        return codes, _best_slope(rows, codes)


def _best_scale(fixed: FixedPoint, codes: Tensor) -> Tensor:
    """Return the scale (R,) of least squared error for ``codes`` (R, L)."""
    kept = (fixed.units * codes).sum(-1)
    return fixed.mean(kept, codes.ne(0).sum(-1)).clamp_min(MIN_SCALE)


def _best_slope(rows: Tensor, codes: Tensor) -> Tensor:
    """Return the scale (R,) of least squared error for ``codes`` (R, L) beside an offset."""
    fixed = fixed_point(rows)
    # Integer sums below 2^63, then float64 with one rounding at a time: the same everywhere.
    m = float(rows.shape[1])
    wt, w = ((fixed.units * c).sum(-1).to(torch.float64) for c in (codes, torch.ones_like(codes)))
    t, tt = (c.sum(-1).to(torch.float64) for c in (codes.to(torch.int64), codes.ne(0)))
    spread = m * tt - t * t
    slope = (m * wt - w * t) / torch.where(spread > 0, spread, 1.0)
    scale = (slope * torch.exp2(-fixed.exponent.to(torch.float64))).to(torch.float32)
    return scale.clamp_min(MIN_SCALE)


def _best_offset(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Return the offset (R,) of least squared error for ``codes`` (R, L) times ``scale``."""
    fixed = fixed_point(rows)
    mean = fixed.units.sum(-1).to(torch.float64) * torch.exp2(-fixed.exponent.to(torch.float64))
    total = mean - scale.to(torch.float64) * codes.sum(-1, dtype=torch.int64).to(torch.float64)
    return (total / float(rows.shape[1])).to(torch.float32)
