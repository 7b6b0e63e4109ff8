"""Where the inputs lie when the clock starts: in memory (cold) or in a cache (warm).

A matrix that is multiplied in a loop stays in the last-level cache and looks twice as fast as
in a model, whose other layers push it out. So the weights of a case exist many times, at
different addresses and with the same content, and each call takes the next copy: when the
first one comes round again, more than the cache holds has been read in between.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

COLD, WARM = "cold", "warm"
# Where the system does not say: larger than most.
_ASSUMED_CACHE = 64 << 20
# Something this small is in a cache whenever a real program needs it.
_ALWAYS_WARM = 1024


@functools.cache
def last_level_cache() -> int:
    """Return the size in bytes of the largest cache; a cautious guess where nobody lists it."""
    sizes = [
        _bytes(p.read_text()) for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")
    ]
    return max(sizes, default=_ASSUMED_CACHE)


def copies_for(nbytes: int, temperature: str, cache: int | None = None) -> int:
    """Return how many copies of ``nbytes`` keep each one ``temperature``; 1 means warm.

    Args:
        nbytes: Size of one.
        temperature: ``"cold"`` or ``"warm"``.
        cache: Size of the last-level cache; None for that of this machine's processor.
    """
    cache = cache or last_level_cache()
    if temperature == WARM or nbytes < cache // _ALWAYS_WARM:
        return 1
    # Twice the cache, because eviction is not in strict order.
    return max(2, -(-2 * cache // nbytes))


def copies(tensor: Tensor, temperature: str) -> list[Tensor]:
    """Return the tensor and as many clones as :func:`copies_for` says."""
    cache = l2_bytes(tensor.device) if tensor.device.type == "cuda" else None
    count = copies_for(tensor.nbytes, temperature, cache)
    return [tensor, *(tensor.clone() for _ in range(count - 1))]


def l2_bytes(device: torch.device) -> int:
    """Return the size of the last-level cache of a GPU."""
    found: int = torch.cuda.get_device_properties(device).L2_cache_size
    return found


def temperature_of(count: int) -> str:
    """Return what a pool of ``count`` buffers is, for the row."""
    return COLD if count > 1 else WARM


def _bytes(text: str) -> int:
    text = text.strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * unit
