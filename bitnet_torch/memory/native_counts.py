"""What PyTorch's own allocators count, device by device, in one form.

Nothing here initialises a device: one that has not been used has allocated nothing, and that is
asked of PyTorch first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bitnet_torch.errors import DeviceError


@dataclass(frozen=True)
class NativeCounts:
    """Counters of an allocator; None is unknown. The names are those of MemoryStats."""

    source: str
    exact: bool
    allocated: int | None = None
    peak_allocated: int | None = None
    requested: int | None = None
    reserved: int | None = None
    peak_reserved: int | None = None
    total_allocated: int | None = None
    total_freed: int | None = None
    num_allocs: int | None = None
    num_frees: int | None = None
    num_ooms: int | None = None
    largest_free_block: int | None = None
    inactive_split: int | None = None


def native_counts(device: torch.device) -> NativeCounts | None:
    """Return the counters of a device's own allocator; None if it has none, as on the CPU.

    Raises:
        DeviceError: There is no such device here.
    """
    if device.type in ("cpu", "meta"):
        return None
    if device.type == "cuda":
        return _caching(device, torch.cuda.is_available, torch.cuda.memory_stats, "cuda")
    if device.type == "mps":
        return _mps()
    return _caching(
        device, torch.accelerator.is_available, torch.accelerator.memory_stats, "accelerator"
    )


def _caching(
    device: torch.device,
    available: Callable[[], bool],
    memory_stats: Callable[[torch.device], dict[str, int]],
    source: str,
) -> NativeCounts:
    """Read an allocator with CUDA's scheme of keys; it says ``{}`` before its first use."""
    if not available():
        raise DeviceError(f"device {str(device)!r} is not available", device=str(device))
    stats = memory_stats(device)
    if not stats:
        return NativeCounts(source, True, allocated=0, reserved=0)

    def of(metric: str, field: str) -> int | None:
        return stats.get(f"{metric}.all.{field}")

    return NativeCounts(
        source,
        True,
        allocated=of("allocated_bytes", "current"),
        peak_allocated=of("allocated_bytes", "peak"),
        requested=of("requested_bytes", "current"),
        reserved=of("reserved_bytes", "current"),
        peak_reserved=of("reserved_bytes", "peak"),
        total_allocated=of("allocated_bytes", "allocated"),
        total_freed=of("allocated_bytes", "freed"),
        num_allocs=of("allocation", "allocated"),
        num_frees=of("allocation", "freed"),
        num_ooms=stats.get("num_ooms"),
        inactive_split=of("inactive_split_bytes", "current"),
    )


def _mps() -> NativeCounts:
    """Read Metal's allocator, which keeps no peak and counts no calls."""
    if not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not available", device="mps")
    return NativeCounts(
        "mps",
        True,
        allocated=torch.mps.current_allocated_memory(),
        reserved=torch.mps.driver_allocated_memory(),
    )


def empty_native_cache(device: torch.device) -> int:
    """Let PyTorch's allocator give free memory back; return the bytes it really gave."""
    before = native_counts(device)
    if before is None or before.reserved is None:
        return 0
    if device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        torch.accelerator.empty_cache()
    after = native_counts(device)
    return before.reserved - (after.reserved or 0) if after is not None else 0
