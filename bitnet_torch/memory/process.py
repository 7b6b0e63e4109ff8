"""What the operating system says of this process's memory, and an allocator of its device's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import torch

from bitnet_torch.memory.native_counts import native_counts

_STATUS = Path("/proc/self/status")


def bytes_in_use(device: torch.device | str | None = None) -> int:
    """Return the bytes of live tensors on an accelerator, else this process's resident memory.

    The two are not comparable: on the CPU nobody counts tensors unless a tracker runs.
    """
    counts = native_counts(torch.device(device)) if device is not None else None
    if counts is not None and counts.allocated is not None:
        return counts.allocated
    return resident_bytes()


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Return the largest resident memory that this process ever had."""
    if _STATUS.exists():
        # On Linux ru_maxrss keeps the peak of the process that started this one.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) << 10
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, other systems kilobytes.
    return peak if sys.platform == "darwin" else peak << 10
