"""Float32 steps that PyTorch does not promise to the bit, made exact for the references."""

from __future__ import annotations

import torch
from torch import Tensor

_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def pow2(exponent: Tensor) -> Tensor:
    """Return 2^exponent for int32 in [-126, 127]; ``torch.ldexp`` may be an ulp off on a device."""
    return ((exponent + 127) << 23).view(torch.float32)


def frexp_exponent(x: Tensor) -> Tensor:
    """Return e of ``x = f * 2^e``, 0.5 <= f < 1, as int32, for x >= 0; -126 if x is subnormal.

    By the exponent field, because every device has integers.
    """
    return (x.view(torch.int32) >> 23) - 126


def sqrt_rn(x: Tensor) -> Tensor:
    """Return the correctly rounded root of a small tensor.

    PyTorch's float32 root is an ulp off on the CPU for some values; a root in float64 has more
    than twice the bits, so that rounding it again changes nothing.
    """
    if x.device.type == "mps":  # which has no float64
        return x.cpu().to(torch.float64).sqrt().to(torch.float32).to(x.device)
    return x.to(torch.float64).sqrt().to(torch.float32)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return float32 ``a * b + c``, rounded once, of float32 tensors.

    In float64 the product is exact and the sum is not: rounding that twice may be wrong. So an
    inexact sum takes, of the two float64 numbers around it, the odd one, which is never half-way
    between two float32 numbers; then the second rounding is right (Boldo and Melquiond 2008).
    """
    if a.device.type == "mps":  # which has no float64
        return fma(a.cpu(), b.cpu(), c.cpu()).to(a.device)
    product, addend = a.to(torch.float64) * b.to(torch.float64), c.to(torch.float64)
    total = product + addend
    other = total - product
    error = (product - (total - other)) + (addend - other)
    bits = total.view(torch.int64)
    even = (error != 0) & total.isfinite() & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    nearest_odd = torch.where(away, bits + 1, bits - 1)
    return torch.where(even, nearest_odd, bits).view(torch.float64).to(torch.float32)


def exp(v: Tensor) -> Tensor:
    """Return exp(v), float32, within 2^-22: that of -86 below, and infinite from 89 on.

    Single float32 operations in the order that :mod:`bitnet_torch.ops.glu` spells out.
    """
    v = v.clamp(-86.0, 104.0)
    n = (v * 1.44269504).round()
    r = (v - n * 0.693359375) - n * -2.12194440e-4
    p = torch.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        p = p * r + coefficient
    p = p * (r * r) + r + 1
    turns = n.to(torch.int32)
    half = turns >> 1  # 2^n itself may be beyond float32
    return p * pow2(half) * pow2(turns - half)
