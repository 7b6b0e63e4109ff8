"""Memory that somebody else has made, entered in a pool's books as if it had been lent."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.memory.blocks import Block
from bitnet_torch.memory.request import Request, canonical


def adopted_block(tensor: Tensor) -> Block:
    """Return a block over the whole storage of a tensor."""
    device = canonical(tensor.device)
    with torch.inference_mode(False):
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        whole.set_(tensor.untyped_storage())
    # Its size is no class and its stream is not known: nothing is ever served from it.
    pinned = device.type == "cpu" and tensor.is_pinned()
    return Block((str(device), whole.numel(), 0, pinned), whole, adopted=True)


def adoption(block: Block) -> Request:
    """Return what an adopted block serves: all of itself.

    Raises:
        ShapeError: It has no bytes.
    """
    device, nbytes, _, pinned = block.key
    if not nbytes:
        raise ShapeError("a lease needs at least one byte, got a tensor whose storage is empty")
    return Request((nbytes,), (1,), torch.uint8, nbytes, device, 1, pinned, block.key)
