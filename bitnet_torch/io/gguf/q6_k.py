"""Weights to Q6_K blocks: the search for scales that ggml makes.

Each 16 weights get a scale by trying 19 steps around ``max / -32`` and keeping the one whose
quanta, weighted by the squares of the weights, fit best. The 16 scales of a block of 256 are
rounded to int8 multiples of one float16 size, and the quanta are then taken anew.

Source: ggml-quants.c, ``make_qx_quants`` and ``quantize_row_q6_K_ref``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-15
_STEPS = (0, *range(-9, 0), *range(1, 10))


def encode_q6_k(blocks: Tensor) -> Tensor:
    """Return Q6_K blocks, uint8 (n, 210), of float32 weights (n, 256)."""
    groups = blocks.view(-1, 16, 16)
    scales = _best_scales(groups)
    largest = _first_largest(scales)
    dead = largest.abs() < _LEAST
    inverse = torch.where(dead, torch.zeros_like(largest), _over(-128.0, largest))
    d = torch.where(dead, torch.zeros_like(largest), _over(1.0, inverse)).to(torch.float16)
    rounded = (inverse[:, None] * scales).round().clamp_max(127)
    step = (d.to(torch.float32)[:, None] * rounded)[:, :, None]
    quanta = torch.where(step == 0, torch.zeros_like(groups), groups / step).round().clamp(-32, 31)
    q = (quanta + 32).to(torch.uint8).view(-1, 2, 4, 32)
    tail = (rounded.to(torch.int8).view(torch.uint8), d[:, None].view(torch.uint8))
    return torch.cat((_low_bits(q), _high_bits(q), *tail), 1)


def _low_bits(q: Tensor) -> Tensor:
    """Return ql (n, 128): weights 0-63 of each 128 in the low nibbles, 64-127 in the high."""
    low = (q & 15).flatten(2)
    return (low[:, :, :64] | (low[:, :, 64:] << 4)).flatten(1)


def _high_bits(q: Tensor) -> Tensor:
    """Return qh (n, 64): bits 4-5 of weights m, 32 + m, 64 + m and 96 + m of each 128."""
    a, b, c, d = (q >> 4).unbind(2)
    high: Tensor = a | (b << 2) | (c << 4) | (d << 6)
    return high.flatten(1)


def _best_scales(groups: Tensor) -> Tensor:
    """Return the scale of each group (n, 16) of weights (n, 16, 16)."""
    peak = _first_largest(groups)
    dead = peak.abs() < _LEAST
    weight = groups * groups
    scale, best = torch.zeros_like(peak), torch.zeros_like(peak)
    for step in _STEPS:
        top = torch.tensor(32, dtype=torch.float32) + torch.tensor(0.1) * step
        inverse = torch.where(dead, torch.zeros_like(peak), _over(-float(top), peak))
        quanta = (inverse[:, :, None] * groups).round().clamp(-32, 31)
        product = (weight * groups * quanta).sum(-1)
        square = (weight * quanta * quanta).sum(-1)
        better = (square > 0) & (product * product > best * square)
        found = product / torch.where(better, square, torch.ones_like(square))
        scale = torch.where(better, found, scale)
        best = torch.where(better, found * product, best)
    return scale


def _first_largest(x: Tensor) -> Tensor:
    """Return the element of largest magnitude along the last dimension, with its sign."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True)).squeeze(-1)


def _over(value: float, x: Tensor) -> Tensor:
    """Return ``value / x`` as one division, and 0 where x is 0."""
    safe = torch.where(x == 0, torch.ones_like(x), x)
    return torch.where(x == 0, torch.zeros_like(x), torch.full_like(x, value) / safe)
