"""Ternary codes to 2 bits and back, in the exchange layout: contracts and references.

The exchange layout is the one of Hugging Face's packed checkpoints. With ``R = ceil(N/4)``,
byte ``[r, k]`` of the uint8 matrix (R, K) holds column k of rows r, r+R, r+2R and r+3R::

    bits   7..6   5..4   3..2   1..0
    row    r+3R   r+2R   r+R    r            code = t + 1

    t = -1, 0, 1, 1 in rows r .. r+3R   ->   0b10_10_01_00

Rows past N hold code 1 (weight 0). Code 3 does not occur: ``unpack_codes`` refuses it.

==========  ===============  ======  ============================================
argument    shape            dtype   meaning
==========  ===============  ======  ============================================
t           (N, K)           int8    codes -1, 0, 1
packed      (ceil(N/4), K)   uint8   four codes a byte, contiguous
N           --               int     number of rows, which the bytes do not say
==========  ===============  ======  ============================================

Source: transformers, ``integrations/bitnet.py`` (``pack_weights``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import QuantizationError, ShapeError
from bitnet_torch.ops._checks import check_dtype, check_packed
from bitnet_torch.ops._registry import declare


def _check_pack(t: Tensor) -> None:
    check_dtype("t", t, torch.int8)
    if t.dim() != 2:
        raise ShapeError(f"t must be (N, K), got {tuple(t.shape)}")


def _fake_pack(t: Tensor) -> Tensor:
    return torch.empty((-(-t.shape[0] // 4), t.shape[1]), dtype=torch.uint8, device=t.device)


@declare("pack_codes(Tensor t) -> Tensor", check=_check_pack, fake=_fake_pack)
def pack_codes(t: Tensor) -> Tensor:
    """Pack ternary codes four to a byte. See the module docstring."""
    raise_if_not_ternary(t, bool(((t < -1) | (t > 1)).any()))
    n, k = t.shape
    rows = -(-n // 4)
    codes = torch.ones((4 * rows, k), dtype=torch.uint8, device=t.device)
    codes[:n] = (t + 1).to(torch.uint8)
    a, b, c, d = codes.view(4, rows, k)
    packed: Tensor = a | (b << 2) | (c << 4) | (d << 6)
    return packed


def raise_if_not_ternary(t: Tensor, bad: bool) -> None:
    """Raise QuantizationError naming the first code outside -1, 0, 1, if ``bad``."""
    if not bad:
        return
    row, column = (int(i) for i in ((t < -1) | (t > 1)).nonzero()[0])
    raise QuantizationError(
        f"t[{row}, {column}] is {int(t[row, column])}; codes must be -1, 0 or 1",
        index=(row, column),
    )


def _check_unpack(packed: Tensor, N: int) -> None:
    check_packed(packed, packed.shape[-1] if packed.dim() else 0, N)


def _fake_unpack(packed: Tensor, N: int) -> Tensor:
    return torch.empty((N, packed.shape[1]), dtype=torch.int8, device=packed.device)


@declare("unpack_codes(Tensor packed, int N) -> Tensor", check=_check_unpack, fake=_fake_unpack)
def unpack_codes(packed: Tensor, N: int) -> Tensor:
    """Unpack to int8 codes (N, K). See the module docstring."""
    raise_if_corrupt(packed, has_corrupt_code(packed))
    fields = [((packed >> shift) & 3).to(torch.int8) for shift in (0, 2, 4, 6)]
    return (torch.cat(fields)[:N] - 1).contiguous()


def has_corrupt_code(packed: Tensor) -> bool:
    """Return whether some byte holds code 3. Reads the data."""
    return bool((packed & (packed >> 1) & 0b01_01_01_01).any())


def raise_if_corrupt(packed: Tensor, bad: bool) -> None:
    """Raise QuantizationError naming the first byte that holds code 3, if ``bad``."""
    if not bad:
        return
    row, column = (int(i) for i in (packed & (packed >> 1) & 0b01_01_01_01).nonzero()[0])
    raise QuantizationError(
        f"packed[{row}, {column}] is {int(packed[row, column]):#010b}, which holds code 3; "
        "the data is corrupt",
        index=(row, column),
    )
