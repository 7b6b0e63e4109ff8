"""Ternary tensors to GGUF's blocks and back: TQ1_0, TQ2_0 and I2_S.

A code is ``t + 1``, so 0, 1, 2 stand for -1, 0, 1. The TQ types have a float16 size ``d`` in
each block of 256 weights, which is 0 in a block of zeros; I2_S has one float32 for the tensor.

* **TQ2_0**, 66 bytes: ``qs[64]``, d. Weight ``128 g + 32 l + m`` (g < 2, l < 4, m < 32) is bits
  ``2l .. 2l+1`` of ``qs[32 g + m]``.
* **TQ1_0**, 54 bytes: ``qs[48]``, ``qh[4]``, d. Five codes a byte, as digits of a number in base
  3, most significant first, and that number scaled from 243 to 256 so that a digit is had by
  multiplication::

      byte = ceil(256/243 * sum_n code_n * 3^(4-n))       code_n = (byte * 3^n mod 256) * 3 // 256

  ``qs[m]``, m < 32: code n is weight ``32 n + m``. ``qs[32 + m]``, m < 16: weight
  ``160 + 16 n + m``. ``qh[m]``, m < 4: weight ``240 + 4 n + m``, n < 4.
* **I2_S**: 128 weights in 32 bytes, on every processor: weight ``32 l + m`` is bits
  ``6-2l .. 7-2l`` of byte m. Behind the last block come the scale and 28 bytes of padding.

Source: ggml-quants.c (``quantize_row_tq1_0_ref``, ``quantize_row_tq2_0_ref``); bitnet.cpp,
``ggml-bitnet-mad.cpp`` (its x86 branch; published files have this order).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import QuantizationError
from bitnet_torch.io.gguf.types import I2_S, TQ1_0, BlockType

_POWERS = (81, 27, 9, 3, 1)
# Of TQ1_0: where a group of bytes begins in the weights, and its shape (digits, bytes).
_GROUPS = ((0, 5, 32), (160, 5, 16), (240, 4, 4))


def encode_ternary(kind: BlockType, t: Tensor, scale: Tensor) -> Tensor:
    """Return the bytes of a ternary tensor.

    Args:
        kind: TQ1_0, TQ2_0 or I2_S.
        t: Codes -1, 0, 1, int8, with a multiple of ``kind.weights`` of them in a row (for I2_S:
            altogether).
        scale: () float32, the size of one quantum.

    Returns:
        uint8 (``kind.size(t.numel())``,).
    """
    codes = (t.reshape(-1, kind.weights) + 1).to(torch.uint8)
    if kind is I2_S:
        trailer = torch.zeros(kind.trailer, dtype=torch.uint8)
        trailer[:4] = scale.reshape(1).to(torch.float32).cpu().view(torch.uint8)
        return torch.cat((_pack(codes.view(-1, 1, 4, 32), (6, 4, 2, 0)).reshape(-1), trailer))
    packed = _tq1_bytes(codes) if kind is TQ1_0 else _pack(codes.view(-1, 2, 4, 32), (0, 2, 4, 6))
    d = torch.where((codes != 1).any(1), scale.reshape(()).to(torch.float16), 0).to(torch.float16)
    return torch.cat((packed, d[:, None].view(torch.uint8)), 1).reshape(-1)


def decode_ternary(kind: BlockType, data: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes int8 (numel,) and the scales float32 of a tensor's bytes.

    Args:
        kind: TQ1_0, TQ2_0 or I2_S.
        data: uint8 (``kind.size(numel)``,).

    Returns:
        The codes, and one scale per block, or for I2_S one alone (1,).

    Raises:
        QuantizationError: A code is 3, which stands for nothing.
    """
    if kind is I2_S:
        blocks, trailer = data[: -kind.trailer], data[-kind.trailer :]
        codes = _unpack(blocks.view(-1, 1, 32), (6, 4, 2, 0)).view(-1)
        return _signed(codes), trailer[:4].clone().view(torch.float32)
    blocks = data.view(-1, kind.nbytes)
    d = blocks[:, -2:].contiguous().view(torch.float16).to(torch.float32).view(-1)
    body = blocks[:, :-2]
    codes = _tq1_codes(body) if kind is TQ1_0 else _unpack(body.view(-1, 2, 32), (0, 2, 4, 6))
    return _signed(codes.reshape(-1)), d


def _pack(codes: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """Return (blocks, bytes) of codes (blocks, groups, 4, bytes in a group)."""
    a, b, c, d = (codes[:, :, i] << shift for i, shift in enumerate(shifts))
    packed: Tensor = a | b | c | d
    return packed.reshape(codes.shape[0], -1)


def _unpack(groups: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """Return codes (blocks, groups, 4, bytes) of bytes (blocks, groups, bytes)."""
    return torch.stack([(groups >> shift) & 3 for shift in shifts], 2)


def _signed(codes: Tensor) -> Tensor:
    if bool((codes == 3).any()):
        index = int((codes == 3).nonzero()[0])
        raise QuantizationError(f"weight {index} has code 3; the data is corrupt", index=index)
    return codes.to(torch.int8) - 1


def _tq1_bytes(codes: Tensor) -> Tensor:
    groups = []
    for start, digits, width in _GROUPS:
        part = codes[:, start : start + digits * width].to(torch.int32).view(-1, digits, width)
        powers = torch.tensor(_POWERS[:digits], dtype=torch.int32)[:, None]
        groups.append(((part * powers).sum(1) * 256 + 242) // 243)
    return torch.cat(groups, 1).to(torch.uint8)


def _tq1_codes(body: Tensor) -> Tensor:
    groups, first = [], 0
    for _, digits, width in _GROUPS:
        part = body[:, first : first + width].to(torch.int32)[:, None]
        powers = torch.tensor([3**n for n in range(digits)], dtype=torch.int32)[:, None]
        groups.append((((part * powers) & 255) * 3 >> 8).to(torch.uint8).flatten(1))
        first += width
    return torch.cat(groups, 1)
