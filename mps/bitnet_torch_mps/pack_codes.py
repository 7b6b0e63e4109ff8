"""Metal launchers of ``pack_codes`` and ``unpack_codes``. Contract: bitnet_torch/ops/pack_codes.py.

Reading the flag waits for the device, as the contract's refusal of bad codes must.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import pack_codes, unpack_codes
from bitnet_torch.ops.pack_codes import raise_if_corrupt, raise_if_not_ternary
from bitnet_torch_mps._device import metal
from bitnet_torch_mps._launch import launch, plane_group


@metal(pack_codes)
def launch_pack_codes(t: Tensor) -> Tensor:
    """Pack ternary codes four to a byte."""
    n, k = t.shape
    packed = torch.empty((-(-n // 4), k), dtype=torch.uint8, device=t.device)
    if packed.numel():
        raise_if_not_ternary(t, _run("pack_codes", t.contiguous(), packed, n, packed))
    return packed


@metal(unpack_codes)
def launch_unpack_codes(packed: Tensor, N: int) -> Tensor:
    """Unpack to int8 codes (N, K)."""
    t = torch.empty((N, packed.shape[1]), dtype=torch.int8, device=packed.device)
    if t.numel():
        raise_if_corrupt(packed, _run("unpack_codes", packed.contiguous(), t, N, packed))
    return t


def _run(kernel: str, source: Tensor, out: Tensor, n: int, packed: Tensor) -> bool:
    """Run one of the kernels, a thread for each byte; return whether it met a bad code."""
    flag = torch.zeros((), dtype=torch.int32, device=source.device)
    r, k = packed.shape
    launch("pack_codes", kernel, source, out, flag, n, grid=(k, r), group=plane_group(k))
    return bool(flag)
