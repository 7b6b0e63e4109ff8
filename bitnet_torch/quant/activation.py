"""Activations in four bits, per token, for layers that are trained for it.

::

    b       = max(mean |x|, 1e-5)                          a sum of integers, with defined bits
    x_scale = fl32(b / fl32(sqrt 7))
    x_q     = clamp(rne(fl32(x / x_scale)), -8, 7)         real = x_q * x_scale

in float32 whatever the input dtype; divisions are correctly rounded. A row with an element that
is not finite, or beyond 2^126, has x_q = 0 and x_scale = NaN, as in ``ops.quantize_activation``,
which is the quantiser in eight bits.

Source: Wang et al. 2024, "BitNet a4.8" (arXiv:2411.04965), equation 7; BitNet v2 uses the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops._checks import FLOATS, check_dtype, check_k
from bitnet_torch.ops.quantize_activation import MAX_AMAX, MIN_AMAX, quantize_activation
from bitnet_torch.quant.fixed_point import mean_magnitude

ACTIVATION_BITS = (4, 8)
_ROOT_7 = 7**0.5


def quantize_activation4(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x`` (..., K) as (x_q (..., K) int8 in [-8, 7], x_scale (...) float32).

    Raises:
        DTypeError: ``x`` is not a float of 16 or 32 bits.
        ShapeError: K is too long for an exact accumulator.
    """
    check_dtype("x", x, *FLOATS)
    check_k("x", x.shape[-1])
    rows = x.detach().to(torch.float32).reshape(-1, x.shape[-1])
    if not rows.numel():
        return x.to(torch.int8), x.new_full(x.shape[:-1], MIN_AMAX, dtype=torch.float32)
    bad = ~(rows.abs().amax(-1) <= MAX_AMAX)
    rows = rows.masked_fill(bad[:, None], 0.0)
    mean = mean_magnitude(rows).clamp_min(MIN_AMAX)
    scale = mean / torch.full_like(mean, _ROOT_7)
    codes = (rows / scale[:, None]).round().clamp(-8, 7).to(torch.int8)
    scale = scale.masked_fill(bad, float("nan"))
    return codes.reshape(x.shape), scale.reshape(x.shape[:-1])


def quantize_activation_to(bits: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and quanta of ``x`` in 4 or 8 bits."""
    return quantize_activation4(x) if bits == 4 else quantize_activation(x)
