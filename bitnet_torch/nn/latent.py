"""The way back from codes to weights: floats that quantise to exactly given codes and scale.

Multiplying codes by their scale is not it: the mean of ``|t * w_scale|`` is ``w_scale`` times
the share of non-zero codes, so quantising again shrinks the scale by a third. Here the
non-zero weights are set to ``w_scale / density``, and the last bits are spread so that the
integer sum of ``quantize_weight`` is one that gives back ``w_scale`` to the bit.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bitnet_torch.errors import QuantizationError
from bitnet_torch.ops.quantize_weight import quantize_weight

# quantize_weight counts in units of 2^(e - 30); a float32 of exponent e has 24 bits, so it
# is a multiple of 64 units, and lies below 2^30.
_ULP = 64
_TOP = 1 << 30


def latent_weight(t: Tensor, w_scale: Tensor) -> Tensor:
    """Return float32 weights (N, K) for which ``quantize_weight`` gives ``t`` and ``w_scale``.

    Args:
        t: Codes (N, K) int8.
        w_scale: () or (1,) for one scale, (N,) for one per row; float32.

    Raises:
        QuantizationError: There are no such weights, e.g. all codes are zero.
    """
    w, met = _build(t, w_scale)
    if not bool(met.all()):
        raise _none_exist(t, w_scale[~met.reshape(w_scale.shape)])
    return w


def near_latent_weight(t: Tensor, w_scale: Tensor) -> Tensor:
    """Return float32 weights that quantise to ``t`` and to ``w_scale`` or a float beside it.

    Not every float32 is a mean that the fixed-point sum can have. Arguments and errors are those
    of :func:`latent_weight`.
    """
    w, met = _build(t, w_scale)
    for direction in (math.inf, -math.inf):
        if bool(met.all()):
            return w
        beside = torch.nextafter(w_scale, torch.full_like(w_scale, direction))
        other, other_met = _build(t, beside)
        w = torch.where(_by_row(met, t), w, other)
        met = met | other_met
    if not bool(met.all()):
        raise _none_exist(t, w_scale[~met.reshape(w_scale.shape)])
    return w


def _by_row(met: Tensor, t: Tensor) -> Tensor:
    return met[:, None] if len(met) == len(t) else met


def _none_exist(t: Tensor, scales: Tensor) -> QuantizationError:
    return QuantizationError(
        f"no float32 weights of shape {tuple(t.shape)} quantise to these codes with scale "
        f"{scales.reshape(-1)[0].item()!r}"
    )


def _build(t: Tensor, w_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights for ``t`` and, by scale, whether they have these codes and this scale."""
    granularity = "row" if w_scale.numel() > 1 else "matrix"
    groups = t if granularity == "row" else t.reshape(1, -1)
    scales = w_scale.reshape(-1).tolist()
    rows = [_latent_group(codes, scale) for codes, scale in zip(groups, scales, strict=True)]
    w = torch.stack(rows).reshape(t.shape)
    t_again, scale_again = quantize_weight(w, granularity)
    same_codes = (t_again == t).reshape(groups.shape).all(1)
    return w, same_codes & (scale_again.reshape(-1) == w_scale.reshape(-1))


def _latent_group(codes: Tensor, scale: float) -> Tensor:
    nonzero = int(torch.count_nonzero(codes))
    w = torch.zeros(codes.shape, dtype=torch.float32, device=codes.device)
    if not nonzero:
        return w
    exponent = math.frexp(scale * codes.numel() / nonzero)[1]
    magnitude, extra = _split(_target_sum(scale, codes.numel(), exponent), nonzero)
    if magnitude + _ULP >= _TOP:
        exponent += 1
        magnitude, extra = _split(_target_sum(scale, codes.numel(), exponent), nonzero)
    values = torch.full((nonzero,), float(magnitude), dtype=torch.float64, device=codes.device)
    values[:extra] += _ULP
    w[codes != 0] = (values * 2.0 ** (exponent - 30)).to(torch.float32)
    return w * codes


def _split(total: int, parts: int) -> tuple[int, int]:
    """Return (m, j) with ``(parts - j) * m + j * (m + ULP)`` nearest to ``total``."""
    magnitude = total // parts // _ULP * _ULP
    return magnitude, min(parts, round((total - parts * magnitude) / _ULP))


def _target_sum(scale: float, numel: int, exponent: int) -> int:
    """Return a sum of units whose rounded mean is ``scale``, trying floats around the exact one."""
    want = np.float32(math.ldexp(scale, 30 - exponent))
    count = np.float32(numel)
    nearest = np.float32(float(want) * numel)
    candidates = [nearest, *(np.nextafter(nearest, np.float32(d)) for d in (0, np.inf))]
    for total in candidates:
        if total / count == want:
            return int(total)
    return int(nearest)
