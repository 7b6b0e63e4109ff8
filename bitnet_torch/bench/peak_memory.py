"""The largest resident memory that this process ever had, from the operating system."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil


def peak_bytes() -> int:
    """Return the peak of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) << 10
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, other systems kilobytes.
    return peak if sys.platform == "darwin" else peak << 10
