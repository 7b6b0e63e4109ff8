"""Float32 sums of products on bfloat16 matrix units, without rounding a factor.

These multiply exactly and add up in float32, but take 8 significant bits. A float32 number is the
sum of three such pieces (:func:`parts`), codes and int8 activations are one; so a product with
these is that of the pieces. The interpreter multiplies bfloat16 wrongly: there pieces stay float32
(``MATRIX`` is false), and the rest is the same.

What the units add up is float32 as hardware has it: of the 16 products that they add to a sum at
once, each is cut, not rounded, to the place of the last bit of the largest. So a step of 16 terms
is off by at most 17 * 2^-23 of the largest number in it, and all N / 16 of them by
1.07 N * 2^-23 of the largest partial sum, which for terms of one sign grows to the sum of
magnitudes and is half of it on average; the contracts' (N + 1) * 2^-24 has that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bitnet_torch_triton.number import INFINITY, magnitude, widened


@triton.jit
def parts(v, COUNT: tl.constexpr, MATRIX: tl.constexpr):
    """Return ``v`` as ``COUNT`` numbers of 8 bits whose sum it is, the largest first.

    One is enough for bfloat16, two are for float16, three for any. Infinities and NaN are the
    first part, and the others are 0.
    """
    if MATRIX and COUNT == 1 and v.dtype == tl.bfloat16:
        return (v,)
    v = widened(v)
    out = ()
    for _ in tl.static_range(COUNT):
        size = magnitude(v)
        # A NaN may have all of its marks in the bits that are cut off.
        bits = v.to(tl.int32, bitcast=True) | tl.where(size > INFINITY, 0x400000, 0)
        high = (bits & -0x10000).to(tl.float32, bitcast=True)
        if MATRIX:
            out = out + ((bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True),)
        else:
            out = out + (high,)
        v = tl.where(size < INFINITY, v - high, 0.0)
    return out


@triton.jit
def code(c, MATRIX: tl.constexpr):
    """Return codes 0, 1 and 2 as the operands -1, 0 and 1."""
    if MATRIX:
        # The bits of bfloat16: an int of another size would be converted one by one.
        c = c.to(tl.int16)
        bits = (((c & 1) - 1) & 0x3F80) | ((c - 1) & -0x8000)
        return bits.to(tl.bfloat16, bitcast=True)
    else:
        return c.to(tl.float32) - 1.0


@triton.jit
def whole(i, MATRIX: tl.constexpr):
    """Return integers of at most 8 bits as operands that meet :func:`parts`."""
    if MATRIX:
        return i.to(tl.float32).to(tl.bfloat16)
    else:
        return i.to(tl.float32)


@triton.jit
def dots(a, b, acc, COUNT: tl.constexpr):
    """Return acc + the products of the parts ``a`` (..., K) with ``b`` (K, ...), largest last."""
    for i in tl.static_range(COUNT):
        acc = tl.dot(a[COUNT - 1 - i], b, acc, input_precision="ieee")
    return acc
