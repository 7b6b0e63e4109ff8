"""What a lane loads at once, taken apart without leaving it, and its pointers, moved on."""

from __future__ import annotations

import triton
import triton.language as tl

from bitnet_torch_triton.number import widened


@triton.jit
def ahead(pointers, step):
    """Return each of a tuple of pointers, moved by ``step``."""
    out = ()
    for i in tl.static_range(len(pointers)):
        out = out + (pointers[i] + step,)
    return out


@triton.jit
def four_words(ptr, at, end, offset: tl.constexpr):
    """Return a 16-byte load as four tensors of words.

    ``ptr`` is (..., 4) pointers to words, at ``at`` of which those from ``end`` on count as 0.
    """
    if end is None:
        words = tl.load(ptr + offset)
    else:
        words = tl.load(ptr + offset, mask=at + offset < end, other=0)
    shape: tl.constexpr = (words.shape[0], words.shape[1], 2, 2)
    even, odd = tl.split(tl.reshape(words, shape))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def eight_floats(ptr, column, end):
    """Return eight columns as float32 tensors of their own.

    ``ptr`` is (..., 8) pointers to float elements, at ``column`` of which those from ``end`` on
    count as 0.
    """
    if end is None:
        v = tl.load(ptr)
    else:
        v = tl.load(ptr, mask=column < end, other=0.0)
    v = widened(v)
    even, odd = tl.split(tl.reshape(v, (v.shape[0], v.shape[1], 2, 2, 2)))
    a, b = tl.split(even)
    c, d = tl.split(odd)
    v0, v4 = tl.split(a)
    v2, v6 = tl.split(b)
    v1, v5 = tl.split(c)
    v3, v7 = tl.split(d)
    return v0, v1, v2, v3, v4, v5, v6, v7
