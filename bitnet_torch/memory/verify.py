"""Do all the numbers of a pool agree? Asked under its lock, by tests and by people who doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitnet_torch.errors import BitNetError
from bitnet_torch.memory import poison

if TYPE_CHECKING:
    from bitnet_torch.memory.blocks import BlockStore


def verify_counts(store: BlockStore) -> None:
    """Check counters against free lists, rows and each other.

    Raises:
        BitNetError: Two numbers that must be equal are not.
        LeaseError: A poisoned block was written.
    """
    waiting = [block for _, block in store.pending]
    for device in store.devices():
        counters = store.counters_of(device)
        free = store.free_blocks(device)
        pending = sum(block.key[1] for block in waiting if block.key[0] == device)
        _same(device, "cached", counters.cached, sum(block.key[1] for block in free))
        _same(device, "pending", counters.pending, pending)
        born = counters.hits + counters.misses - counters.failed
        _same(device, "live leases", counters.live, born - counters.releases)
        _same(device, "leased", counters.leased, counters.total_leased - counters.total_released)
        _ordered(device, "leased", counters.leased, "held", counters.held)
        _ordered(device, "leased", counters.leased, "peak", counters.peak_leased)
        _ordered(device, "reserved", counters.reserved, "peak", counters.peak_reserved)
        for block in free:
            if (tag := block.poisoned_by) is not None:
                try:
                    poison.check(block)
                finally:
                    block.poisoned_by = tag
    lent = sum(block.nbytes for block in store.blocks())
    leased = sum(store.counters_of(device).leased for device in store.devices())
    _same("all devices", "joint", store.joint.leased, leased)
    _ordered("all devices", "leased", leased, "joint peak", store.joint.peak_leased)
    # A lease is counted before its memory is asked for.
    _ordered("all devices", "lent", lent, "leased", leased)
    live = sum(store.counters_of(device).live for device in store.devices())
    remembered = sum(block.born_ns != 0 for block in store.blocks())
    _ordered("all devices", "remembered leases", remembered, "live leases", live)


def _same(device: str, name: str, counted: int, found: int) -> None:
    if counted != found:
        raise BitNetError(f"{device}: {name} is counted as {counted} but is {found}")


def _ordered(device: str, low: str, less: int, high: str, more: int) -> None:
    if not 0 <= less <= more:
        raise BitNetError(f"{device}: {low} {less} must be between 0 and {high} {more}")
