"""Absmean ternarisation of a weight matrix: the contract and the reference.

Maths, over the whole matrix (``granularity="matrix"``) or over each row (``"row"``), in
float32 whatever the input dtype::

    a = max |W|
    a < 1e-5   ->  w_scale = 1e-5
    otherwise  a = f * 2^e with 0.5 <= f < 1;  p = 30 - e
               S = sum int64(rne(|W| * 2^p))
               w_scale = max(ldexp(fl32(fl32(S) / fl32(numel)), -p), 1e-5)
    t = (W > w_scale / 2) - (W < -w_scale / 2)

``w_scale`` is the mean of |W| (to about 1e-7 for ordinary matrices) with defined bits: the
sum is a sum of integers, so threads, blocks, shards and devices cannot change it. ``t``
equals ``clamp(rne(W / w_scale), -1, 1)`` and needs no division. ``real = t * w_scale``.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
w           (N, K)       float32, bfloat16,       latent weights, any strides
                         float16
t           (N, K)       int8                     codes -1, 0, 1, contiguous
w_scale     () or (N,)   float32                  weight quantum of the matrix / row
==========  ===========  =======================  ===================================

A non-finite weight is a :class:`~bitnet_torch.errors.QuantizationError` that names its
index. ``numel`` may be at most 2^33, so that S fits 63 bits.

Source: Ma et al. 2024, "The Era of 1-bit LLMs" (arXiv:2402.17764), equations 1 to 3; the
fixed-point sum is this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, QuantizationError, ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype
from bitnet_torch.ops._exact import frexp_exponent, pow2
from bitnet_torch.ops._registry import declare

MIN_SCALE = 1e-5
MAX_NUMEL = 1 << 33
GRANULARITIES = ("matrix", "row")


def check_weight(w: Tensor, granularity: str = "matrix") -> None:
    """Raise unless ``w`` is a float matrix (N, K) that has a scale of this granularity."""
    check_dtype("w", w, *FLOATS)
    if w.dim() != 2:
        raise ShapeError(f"w must be (N, K), got {tuple(w.shape)}")
    if w.numel() > MAX_NUMEL:
        raise ShapeError(f"w has {w.numel()} weights; the scale is exact up to {MAX_NUMEL}")
    if granularity not in GRANULARITIES:
        raise ConfigurationError(
            f"granularity must be one of {GRANULARITIES}, got {granularity!r}",
            granularity=granularity,
        )


def _fake(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    scales = w.shape[:1] if granularity == "row" else ()
    return (
        torch.empty(w.shape, dtype=torch.int8, device=w.device),
        torch.empty(scales, dtype=torch.float32, device=w.device),
    )


@declare(
    'quantize_weight(Tensor w, str granularity="matrix") -> (Tensor, Tensor)',
    check=check_weight,
    fake=_fake,
)
def quantize_weight(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    """Ternarise ``w`` by the mean of its magnitudes. See the module docstring."""
    w = w.to(torch.float32, memory_format=torch.contiguous_format)
    rows = w if granularity == "row" else w.reshape(1, -1)
    if not rows.shape[1]:
        scale = torch.full(rows.shape[:1], MIN_SCALE, dtype=torch.float32, device=w.device)
    else:
        scale = _mean_magnitude(w, rows.abs())
    return codes_of(w, scale), scale if granularity == "row" else scale.reshape(())


def codes_of(w: Tensor, scale: Tensor) -> Tensor:
    """Return the codes int8 (N, K) of float32 ``w`` for scales (1,) or (N,)."""
    half = (scale * 0.5)[:, None]
    return (w > half).to(torch.int8) - (w < -half).to(torch.int8)


def _mean_magnitude(w: Tensor, magnitude: Tensor) -> Tensor:
    peak = magnitude.amax(-1)
    raise_if_not_finite(w, peak)
    total = in_units(magnitude, peak[:, None]).sum(-1)
    return scale_of_sum(peak, total, magnitude.shape[1])


def in_units(magnitude: Tensor, peak: Tensor) -> Tensor:
    """Return rne(|W| * 2^p) as int64, p from the largest magnitude ``peak``, which broadcasts."""
    return (magnitude * pow2(_power(peak))).round().to(torch.int64)


def scale_of_sum(peak: Tensor, total: Tensor, numel: Tensor | int) -> Tensor:
    """Return the float32 scales of matrices or rows from their peaks and sums ``in_units``."""
    count = torch.as_tensor(numel, dtype=torch.float32, device=peak.device)
    mean = total.to(torch.float32) / count * pow2(-_power(peak))
    return torch.where(
        peak < MIN_SCALE, torch.full_like(peak, MIN_SCALE), mean.clamp_min(MIN_SCALE)
    )


def _power(peak: Tensor) -> Tensor:
    return 30 - frexp_exponent(peak.clamp_min(MIN_SCALE))


def raise_if_not_finite(w: Tensor, peak: Tensor) -> None:
    """Raise QuantizationError with the index of the first weight that is NaN or infinite.

    Args:
        w: The weights (N, K).
        peak: Their largest magnitudes; NaN where a weight is.
    """
    if bool(torch.isfinite(peak).all()):
        return
    row, column = (int(i) for i in (~torch.isfinite(w)).nonzero()[0])
    value = float(w[row, column])
    raise QuantizationError(
        f"weight [{row}, {column}] is {value}; a ternary scale needs finite weights",
        index=(row, column),
        value=value,
    )
