"""The blocks behind leases: free lists by device, size, stream and kind, and their counters."""

from __future__ import annotations

import functools
import sys
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitnet_torch.memory.counters import DeviceCounters, JointCounters
from bitnet_torch.memory.sites import Site

if TYPE_CHECKING:
    from bitnet_torch.memory.request import Request

# Device, bytes, stream (0 on the CPU), pinned.
BlockKey = tuple[str, int, int, bool]


class Block:
    """Bytes that a pool has from PyTorch.

    Attributes:
        key: Which free list it belongs to.
        storage: A uint8 tensor over all of it, never handed out.
        poisoned_by: Tag of the lease at whose release it was filled with poison; None: it is not.
        tag: Of the lease that has it, or had it last.
        nbytes: Of the lease that has it; 0 if none has.
        born_ns: When the lease that has it was taken; 0 if none has, or it is not remembered.
        site: The line that took it; None unless that is remembered.
        adopted: Whether somebody else made it, who keeps it after its lease.
    """

    __slots__ = (
        "__weakref__",
        "adopted",
        "born_ns",
        "key",
        "nbytes",
        "poisoned_by",
        "site",
        "storage",
        "tag",
    )

    def __init__(self, key: BlockKey, storage: Tensor, adopted: bool = False) -> None:
        self.key = key
        self.storage = storage
        self.adopted = adopted
        self.poisoned_by: str | None = None
        self.tag = ""
        self.nbytes = 0
        self.born_ns = 0
        self.site: Site | None = None

    def is_alone(self) -> bool:
        """Whether no tensor and no storage object but the block's own holds the bytes."""
        return _references(self.storage) == _own_references()


def _references(tensor: Tensor) -> tuple[int, int]:
    """Return how many C++ and how many Python references there are to a tensor's storage."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)), sys.getrefcount(storage)


@functools.cache
def _own_references() -> tuple[int, int]:
    """Return what :func:`_references` finds where nobody else holds the storage.

    Asked of PyTorch once: how a storage and its Python object hold each other has changed between
    its versions.
    """
    return _references(torch.empty(1, dtype=torch.uint8))


def take_memory(request: Request) -> Block:
    """Ask PyTorch for a block.

    Raises:
        RuntimeError: There is none to be had.
    """
    # A block outlives the mode it was made in: an inference tensor could not be written later.
    with torch.inference_mode(False):
        storage = torch.empty(
            request.key[1], dtype=torch.uint8, device=request.device, pin_memory=request.pinned
        )
    return Block(request.key, storage)


def typed_view(block: Block, request: Request) -> Tensor:
    """Return a tensor over the block that autograd knows nothing of.

    A slice would be a view of the block's own tensor, which could then acquire a graph.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return typed_view(block, request)
    offset = 0
    if request.alignment > 1:
        offset = -block.storage.data_ptr() % request.alignment // request.dtype.itemsize
    view = torch.empty(0, dtype=request.dtype, device=request.device)
    view.set_(block.storage.untyped_storage(), offset, request.shape, request.strides)
    return view


class BlockStore:
    """Free lists and counters. Every method is called under the pool's lock.

    Args:
        most_cached: Bytes of free blocks kept on each device.

    Attributes:
        pending: Blocks that wait for events of other streams.
        pinned: Bytes of all pinned blocks.
        joint: Counters of all devices together.
    """

    def __init__(self, most_cached: int) -> None:
        self._most_cached = most_cached
        self._free: dict[BlockKey, list[Block]] = {}
        self._counters: dict[str, DeviceCounters] = {}
        self.joint = JointCounters()
        self._all: weakref.WeakSet[Block] = weakref.WeakSet()
        self.pending: list[tuple[list[Any], Block]] = []
        self.pinned = 0

    def counters_of(self, device: str) -> DeviceCounters:
        """Return the counters of a device; this one may be called without the lock."""
        counters = self._counters.get(device)
        if counters is not None:
            return counters
        return self._counters.setdefault(device, DeviceCounters(self.joint))

    def devices(self) -> list[str]:
        """Return the names of the devices that have been used."""
        return list(self._counters)

    def take(self, key: BlockKey) -> Block | None:
        """Take the block that was freed last, whose bytes are most likely in a processor cache."""
        free = self._free.get(key)
        if not free:
            return None
        self._counters[key[0]].cached -= key[1]
        return free.pop()

    def adopt(self, block: Block) -> None:
        """Count a block that PyTorch has just given."""
        self._all.add(block)
        if block.key[3]:
            self.pinned += block.key[1]

    def has_adopted(self, block: Block) -> bool:
        """Return whether the storage of a block is behind an adopted one already."""
        ours = block.storage.untyped_storage()._cdata
        adopted = [other for other in self._all if other.adopted]
        return any(other.storage.untyped_storage()._cdata == ours for other in adopted)

    def put(self, block: Block, *, keep: bool, pending: list[Any] | None) -> None:
        """Take a block back: into its free list, or to wait, or to be forgotten."""
        counters = self._counters[block.key[0]]
        size = block.key[1]
        block.nbytes = 0
        if not keep:
            self._forget(block)
        elif pending:
            self.pending.append((pending, block))
            counters.pending += size
        elif counters.cached + size > self._most_cached:
            counters.evictions += 1
            self._forget(block)
        else:
            self._free.setdefault(block.key, []).append(block)
            counters.cached += size

    def settle(self) -> None:
        """Move what no stream uses any more to the free lists."""
        waiting, self.pending = self.pending, []
        for events, block in waiting:
            if all(event.query() for event in events):
                self._counters[block.key[0]].pending -= block.key[1]
                self.put(block, keep=True, pending=None)
            else:
                self.pending.append((events, block))

    def trim(self, device: str, keep: int) -> list[Block]:
        """Take free blocks out, largest and oldest first, until at most ``keep`` bytes are left.

        They end when the caller lets go of them.
        """
        counters, out = self.counters_of(device), []
        keys = [key for key in self._free if key[0] == device]
        for key in sorted(keys, key=lambda k: -k[1]):
            free = self._free[key]
            while free and counters.cached > keep:
                block = free.pop(0)
                counters.cached -= key[1]
                self._forget(block)
                out.append(block)
            if not free:
                del self._free[key]
        return out

    def blocks(self) -> list[Block]:
        """Return every block, leased or free."""
        return list(self._all)

    def free_blocks(self, device: str) -> list[Block]:
        """Return the cached blocks of a device."""
        return [block for key, free in self._free.items() if key[0] == device for block in free]

    def reset_peaks(self) -> None:
        """Let all peaks start anew."""
        for counters in self._counters.values():
            counters.reset_peak()
        self.joint.peak_leased = self.joint.leased

    def _forget(self, block: Block) -> None:
        self._all.discard(block)
        if block.key[3]:
            self.pinned -= block.key[1]
