"""CPU launchers of :func:`bitnet_torch.ops.pack_codes` and ``unpack_codes``."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import BAD_VALUE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import pack_codes, unpack_codes
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.pack_codes import raise_if_corrupt, raise_if_not_ternary

_pack = function("pack_codes", POINTER, SIZE, SIZE, POINTER, INT)
_unpack = function("unpack_codes", POINTER, SIZE, SIZE, POINTER, INT)


@implement(pack_codes, backend="cpu", device="cpu")
def _launch_pack(t: Tensor) -> Tensor:
    t = t.contiguous()
    n, k = t.shape
    packed = torch.empty((-(-n // 4), k), dtype=torch.uint8, device=t.device)
    status = _pack(t.data_ptr(), n, k, packed.data_ptr(), torch.get_num_threads())
    raise_if_not_ternary(t, status == BAD_VALUE)
    if status:
        raise failure("pack_codes", status)
    return packed


@implement(unpack_codes, backend="cpu", device="cpu")
def _launch_unpack(packed: Tensor, N: int) -> Tensor:
    packed = packed.contiguous()
    k = packed.shape[1]
    t = torch.empty((N, k), dtype=torch.int8, device=packed.device)
    status = _unpack(packed.data_ptr(), N, k, t.data_ptr(), torch.get_num_threads())
    raise_if_corrupt(packed, status == BAD_VALUE)
    if status:
        raise failure("unpack_codes", status)
    return t
