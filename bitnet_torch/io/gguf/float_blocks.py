"""Float tensors to GGUF's blocks and back.

Each block holds quanta ``q`` and float16 sizes; products and sums are float32, each rounded by
itself, as in gguf-py:

=======  =======  ===================================================  =====================
type     weights  bytes                                                value
=======  =======  ===================================================  =====================
Q4_0     32       d, qs[16]: weight m low, 16 + m high nibble          ``d * (q - 8)``
Q4_1     32       d, m, qs[16]: the same                               ``d * q + m``
Q8_0     32       d, q[32] int8                                        ``q * d``
Q5_K     256      d, dmin, 8 scales and 8 minima of 6 bits in 12       ``(d * s) * q -
                  bytes, qh[32], qs[128]                               (dmin * m)``
Q6_K     256      ql[128], qh[64], 16 scales int8, d                   ``(d * s) * (q - 32)``
=======  =======  ===================================================  =====================

Written are F32, F16, BF16, Q8_0 and Q6_K. Q8_0 has the bytes of ggml. Q6_K searches the scale of
each 16 weights as ggml does; where two are equally good to the last bit of a float32 sum, ggml
may choose the other.

Source: ggml-quants.c; gguf-py's ``quants.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.q6_k import encode_q6_k
from bitnet_torch.io.gguf.types import BlockType

_PLAIN = {types.F32: torch.float32, types.F16: torch.float16, types.BF16: torch.bfloat16}
WRITABLE = (types.F32, types.F16, types.BF16, types.Q8_0, types.Q6_K)


def decode_float(kind: BlockType, data: Tensor) -> Tensor:
    """Return the weights (numel,) of a tensor's bytes; float32, of plain types their own dtype.

    Args:
        kind: One of ``types.FLOAT``.
        data: uint8 (``kind.size(numel)``,).
    """
    if kind in _PLAIN:
        return data.view(_PLAIN[kind])
    return _DECODERS[kind](data.view(-1, kind.nbytes)).reshape(-1)


def encode_float(kind: BlockType, weights: Tensor) -> Tensor:
    """Return the bytes of weights, uint8 (``kind.size(numel)``,).

    Args:
        kind: One of ``WRITABLE``.
        weights: Finite floats, with a multiple of ``kind.weights`` of them in a row.
    """
    if kind in _PLAIN:
        return weights.to(_PLAIN[kind]).contiguous().view(-1).view(torch.uint8)
    blocks = weights.to(torch.float32).reshape(-1, kind.weights)
    return (_encode_q8_0(blocks) if kind is types.Q8_0 else encode_q6_k(blocks)).reshape(-1)


def _encode_q8_0(blocks: Tensor) -> Tensor:
    peak = blocks.abs().amax(1, keepdim=True)
    d = peak / torch.full_like(peak, 127.0)
    inverse = torch.where(d == 0, torch.zeros_like(d), torch.ones_like(d) / d)
    scaled = blocks * inverse
    # Half away from zero, as C's roundf; the sum is exact for |q| <= 127.
    q = torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled))
    size = d.to(torch.float16).view(torch.uint8)
    return torch.cat((size, q.to(torch.int8).view(torch.uint8)), 1)


def _halfs(blocks: Tensor, start: int, stop: int) -> Tensor:
    """Return the float16 numbers in bytes ``start .. stop``, as float32 (blocks, count)."""
    return blocks[:, start:stop].contiguous().view(torch.float16).to(torch.float32)


def _nibbles(qs: Tensor) -> Tensor:
    """Return (..., 2 * bytes): all low nibbles, then all high ones."""
    return torch.cat((qs & 15, qs >> 4), -1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _halfs(blocks, 0, 2) * (_nibbles(blocks[:, 2:]).to(torch.float32) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    d, m = _halfs(blocks, 0, 2), _halfs(blocks, 2, 4)
    return d * _nibbles(blocks[:, 4:]).to(torch.float32) + m


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).to(torch.float32) * _halfs(blocks, 0, 2)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    step = (_halfs(blocks, 0, 2) * scales)[:, :, None]
    least = (_halfs(blocks, 2, 4) * minima)[:, :, None]
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).view(-1, 8, 32)
    high = torch.stack([(blocks[:, 16:48] >> bit) & 1 for bit in range(8)], 1)
    return step * (low | (high << 4)).to(torch.float32) - least


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Return eight scales and eight minima, float32, of 12 bytes.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their lower six bits. Bytes 8-11 hold
    four bits of scale and minimum 4-7; their other two are the upper bits of bytes 0-7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), 1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), 1)
    return scales.to(torch.float32), minima.to(torch.float32)


def _q6_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
    step = (_halfs(blocks, 208, 210) * scales)[:, :, None]
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).view(-1, 8, 32)
    halves = blocks[:, 128:192].reshape(-1, 2, 32)
    high = torch.stack([(halves >> shift) & 3 for shift in (0, 2, 4, 6)], 2).view(-1, 8, 32)
    q = (low | (high << 4)).to(torch.float32) - 32
    return step * q.view(-1, 16, 16)


_DECODERS: dict[BlockType, Callable[[Tensor], Tensor]] = {
    types.Q4_0: _q4_0,
    types.Q4_1: _q4_1,
    types.Q8_0: _q8_0,
    types.Q5_K: _q5_k,
    types.Q6_K: _q6_k,
}
