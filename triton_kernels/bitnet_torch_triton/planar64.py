"""The layout of codes that the Triton kernels read, and its registration.

Rows are whole and K is padded to groups of 256 codes, 64 bytes each. Byte i of group g of a row
holds in bits 2j and 2j + 1 the code t + 1 of column 256 g + 64 j + i::

    byte i of group g    bits 7-6              5-4                3-2               1-0
                         256g + 192 + i        256g + 128 + i     256g + 64 + i     256g + i

So 16 bytes that a thread loads meet four runs of 16 activations in their natural order, one run
for each pair of bits, and 64 bytes meet four tiles of 64 columns: nothing is rearranged. Padding
holds code 1, which is never looked at: activations are 0 there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from bitnet_torch.ops.layouts import Layout, register_layout
from bitnet_torch.ops.pack_codes import has_corrupt_code, raise_if_corrupt

NAME = "planar64"
# Codes and bytes of a group.
GROUP, GROUP_BYTES = 256, 64


def groups_of(K: int) -> int:
    """Return the number of groups of a row of K codes."""
    return -(-K // GROUP)


def nbytes(N: int, K: int) -> int:
    """Return the size of the buffer for N rows of K codes."""
    return N * groups_of(K) * GROUP_BYTES


def prepack(packed: Tensor, N: int) -> Tensor:
    """Return the codes of the exchange layout as a (N, bytes of a row) buffer.

    Raises:
        QuantizationError: A byte holds code 3.
    """
    raise_if_corrupt(packed, has_corrupt_code(packed))
    r, k = packed.shape
    groups = groups_of(k)
    buffer = torch.empty((N, groups * GROUP_BYTES), dtype=torch.uint8, device=packed.device)
    # A quarter of the rows at a time: it is as large as the result, and no more is needed at once.
    for j in range(4):
        rows = max(0, min(r, N - j * r))
        codes = pad((packed[:rows] >> (2 * j)) & 3, (0, groups * GROUP - k), value=1)
        plane = codes.view(rows, groups, 4, GROUP_BYTES).unbind(2)
        byte = plane[0] | (plane[1] << 2) | (plane[2] << 4) | (plane[3] << 6)
        buffer[j * r : j * r + rows] = byte.reshape(rows, groups * GROUP_BYTES)
    return buffer


def unpack(buffer: Tensor, N: int, K: int) -> Tensor:
    """Return the codes of such a buffer in the exchange layout."""
    r, groups = -(-N // 4), groups_of(K)
    byte = buffer.reshape(N, groups, 1, GROUP_BYTES)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=buffer.device)[:, None]
    packed = torch.zeros((r, K), dtype=torch.uint8, device=buffer.device)
    for j in range(4):
        rows = max(0, min(r, N - j * r))
        codes = (byte[j * r : j * r + rows] >> shifts) & 3
        packed[:rows] |= codes.reshape(rows, groups * GROUP)[:, :K] << (2 * j)
        packed[rows:] |= 1 << (2 * j)
    return packed


register_layout(Layout(NAME, prepack, unpack, nbytes), device="cuda")
