"""The layout of codes that the CPU kernels read, and its registration.

panel8.hpp draws the bytes: panels of 8 rows, K padded to 16, so that the lanes of a vector
are output rows. One copy serves a single token and a whole prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import BAD_VALUE, INT, POINTER, SIZE, failure, function
from bitnet_torch.cpu.large_pages import weight_buffer
from bitnet_torch.errors import DeviceError
from bitnet_torch.ops.layouts import Layout, register_layout
from bitnet_torch.ops.pack_codes import raise_if_corrupt

NAME = "panel8"

_pack = function("panel8_pack", POINTER, SIZE, SIZE, POINTER, SIZE, INT)
_unpack = function("panel8_unpack", POINTER, SIZE, SIZE, SIZE, POINTER, INT)


def nbytes(N: int, K: int) -> int:
    """Return the size of the buffer for N rows of K codes."""
    return -(-N // 8) * -(-K // 16) * 32


def prepack(packed: Tensor, N: int) -> Tensor:
    """Return the codes of the exchange layout as a flat panel8 buffer.

    Raises:
        QuantizationError: A byte holds code 3.
    """
    _check_on_cpu(packed)
    packed = packed.contiguous()
    k = packed.shape[1]
    buffer = weight_buffer(nbytes(N, k))
    status = _pack(
        packed.data_ptr(), N, k, buffer.data_ptr(), buffer.numel(), torch.get_num_threads()
    )
    raise_if_corrupt(packed, status == BAD_VALUE)
    if status:
        raise failure("panel8", status)
    return buffer


def unpack(buffer: Tensor, N: int, K: int) -> Tensor:
    """Return the codes of a panel8 buffer in the exchange layout."""
    _check_on_cpu(buffer)
    buffer = buffer.contiguous()
    packed = torch.empty((-(-N // 4), K), dtype=torch.uint8, device=buffer.device)
    status = _unpack(
        buffer.data_ptr(), buffer.numel(), N, K, packed.data_ptr(), torch.get_num_threads()
    )
    if status:
        raise failure("panel8", status)
    return packed


def _check_on_cpu(tensor: Tensor) -> None:
    """Refuse what the kernels cannot address: a layout is no op, so no dispatch has looked."""
    if tensor.device.type != "cpu":
        raise DeviceError(f"panel8 is repacked on the CPU, got a tensor on {tensor.device}")


register_layout(Layout(NAME, prepack, unpack, nbytes), device="cpu")
