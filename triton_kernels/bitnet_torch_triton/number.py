"""Numbers inside a kernel: widening, rounding, and integers out of floats, each with defined bits.

A conversion that the hardware has is written with integers all the same, because Triton's
interpreter truncates float32 to bfloat16 where a GPU rounds; so one text has the right bits
in both. ``max`` over floats drops NaN in Triton: maxima are taken over :func:`magnitude`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Bits of float32 numbers.
INFINITY = tl.constexpr(0x7F800000)
TWO_TO_126 = tl.constexpr(0x7E800000)
TWO_TO_63 = tl.constexpr(0x5F000000)
# 1.5 * 2^23 as a number and as bits: adding it rounds |v| <= 2^22 to an integer, ties to even.
MAGIC = tl.constexpr(12582912.0)
MAGIC_BITS = tl.constexpr(0x4B400000)


@triton.jit
def widened(x):
    """Return float32, bfloat16 or float16 ``x`` as float32, exactly."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def rounded(y, dtype: tl.constexpr):
    """Round float32 ``y`` once to ``dtype``: nearest, ties to even, overflow to infinity."""
    if dtype == tl.float32:
        return y
    else:
        bits = y.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        if dtype == tl.bfloat16:
            half = (size + 0x7FFF + ((size >> 16) & 1)) >> 16
            half = tl.where(size > INFINITY, 0x7FC0, half)
        else:
            half = _float16_bits(size)
        return (half | ((bits >> 16) & 0x8000)).to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def _float16_bits(size):
    # From 2^-14 on a float16 is normal: the exponent moves down by 112, 13 bits are rounded off.
    normal = tl.minimum((size + 0xFFF + ((size >> 13) & 1) - (112 << 23)) >> 13, 0x7C00)
    # Below, its quantum is 2^-24, which is that of float32 in [0.5, 1): the sum rounds.
    shifted = size.to(tl.float32, bitcast=True) + 0.5
    subnormal = shifted.to(tl.int32, bitcast=True) - 0x3F000000
    half = tl.where(size < 0x38800000, subnormal, normal)
    return tl.where(size > INFINITY, 0x7E00, half)


@triton.jit
def magnitude(x):
    """Return |x| of float32 ``x`` as int32 bits, ordered like numbers: NaN above infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def nearest(v):
    """Return float32 ``v``, |v| <= 2^22, rounded to an int32, ties to even."""
    return (v + MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS


@triton.jit
def nearest_unsigned(v):
    """Return float32 ``v``, 0 <= v < 2^31, rounded to an int32, ties to even."""
    # From 2^23 on a float32 is an integer already.
    small = (v + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000
    return tl.where(v < 8388608.0, small, v.to(tl.int32))


@triton.jit
def exponent(bits):
    """Return e of float32 f * 2^e >= 0, 0.5 <= f < 1, given as bits; -126 if it is subnormal."""
    return (bits >> 23) - 126


@triton.jit
def pow2(e):
    """Return 2^e as float32, exactly, for -126 <= e <= 127."""
    return ((e + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp(v):
    """Return exp(v) as bitnet_torch/ops/glu.py spells it, for v that is not NaN."""
    v = tl.minimum(tl.maximum(v, -86.0), 104.0)
    n = nearest(v * 1.44269504)
    turns = n.to(tl.float32)
    r = (v - turns * 0.693359375) - turns * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * (r * r) + r + 1.0
    # 2^n itself may be beyond float32.
    half = n >> 1
    return p * pow2(half) * pow2(n - half)
