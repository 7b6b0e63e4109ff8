"""How much of a device is used and what may be used of it, from whoever sets the tightest limit.

On the CPU that is the control group (v1 and v2, every ancestor counts, pages that the kernel can
drop are not used) or the host. ``root`` is injectable, so that a test can build the files.
A reading costs some hundred microseconds: it is sampled, never taken for each allocation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch

# Version 1 writes "no limit" as the largest number of pages.
_UNLIMITED = 1 << 60
_ROOT = Path("/")


@dataclass(frozen=True)
class Usage:
    """Use of a device against its limit, in bytes.

    Attributes:
        device: Its name.
        used: Bytes in use.
        limit: Bytes that may be used.
        source: Who sets the limit.
        stalled: Share of the last ten seconds in which something waited for memory
            (Linux's pressure stall information); None where the kernel does not tell.
    """

    device: str
    used: int
    limit: int
    source: str
    stalled: float | None = None

    @property
    def fraction(self) -> float:
        """``used`` by ``limit``."""
        return self.used / self.limit if self.limit else 0.0


def probe(device: torch.device | str = "cpu", root: Path = _ROOT) -> Usage:
    """Read a device.

    Args:
        device: Which.
        root: Where ``proc`` and ``sys`` are.

    Raises:
        RuntimeError: PyTorch has no such device here.
    """
    where = torch.device(device)
    if where.type == "cpu":
        return _probe_cpu(root)
    name = str(where)
    if where.type == "cuda":
        return _probe_cuda(where)
    if where.type == "mps":
        used, most = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
        return Usage(name, used, most, "recommended")
    free, total = torch.accelerator.get_memory_info(where)
    return Usage(name, total - free, total, "device")


def _probe_cpu(root: Path) -> Usage:
    stalled = _stalled(root)
    memory = psutil.virtual_memory()
    host = Usage("cpu", memory.total - memory.available, memory.total, "host", stalled)
    group = cgroup_usage(root)
    if group is None:
        return host
    used, limit = group
    tighter = limit - used < host.limit - host.used
    return Usage("cpu", used, limit, "cgroup", stalled) if tighter else host


def _probe_cuda(device: torch.device) -> Usage:
    free, total = torch.cuda.mem_get_info(device)
    whole = Usage(str(device), total - free, total, "device")
    share = torch.cuda.get_per_process_memory_fraction(device)
    own = Usage(str(device), torch.cuda.memory_reserved(device), int(total * share), "fraction")
    return own if share < 1.0 and own.fraction >= whole.fraction else whole


def cgroup_usage(root: Path = _ROOT) -> tuple[int, int] | None:
    """Return (used, limit) of the control group with the least room; None if none has a limit."""
    best: tuple[int, int] | None = None
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.current", "memory.max", "inactive_file")
            base = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
            base = root / "sys/fs/cgroup/memory"
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):
            found = _read_group(base / group, *names)
            if found and (best is None or found[1] - found[0] < best[1] - best[0]):
                best = found
    return best


def _read_group(folder: Path, usage: str, limit: str, droppable: str) -> tuple[int, int] | None:
    most, now = _read(folder / limit), _read(folder / usage)
    if most is None or now is None or most == "max" or int(most) >= _UNLIMITED:
        return None
    used = int(now)
    for line in (_read(folder / "memory.stat") or "").splitlines():
        name, _, count = line.partition(" ")
        if name == droppable:
            used = max(0, used - int(count))
    return used, int(most)


def _stalled(root: Path) -> float | None:
    """Return avg10 of the line ``some avg10=0.00 avg60=...`` as a fraction."""
    for line in (_read(root / "proc/pressure/memory") or "").splitlines():
        kind, *facts = line.split()
        if kind == "some":
            return float(dict(fact.split("=", 1) for fact in facts)["avg10"]) / 100
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
