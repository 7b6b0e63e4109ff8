"""Facts about this machine and its software. What cannot be found out is None."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

LIBRARIES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "psutil",
    "tqdm",
    "matplotlib",
    "transformers",
    "tokenizers",
    "mlx",
)
# What ternary kernels can make use of, under the names of /proc/cpuinfo.
_FEATURES = (
    *("avx2", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2"),
)


@dataclass(frozen=True)
class Cpu:
    """The processor.

    Attributes:
        model: What it calls itself.
        cores: Cores that this process may use, hyper-threads included.
        threads: Threads that PyTorch and the kernels use.
        memory_bytes: Main memory.
        features: Instruction sets that matter here; None where the system does not list them.
    """

    model: str | None
    cores: int | None
    threads: int
    memory_bytes: int
    features: tuple[str, ...] | None


@dataclass(frozen=True)
class Accelerator:
    """A kind of device other than the CPU.

    Attributes:
        device: ``"cuda"`` or ``"mps"``.
        names: The devices present, none if empty.
        reason: Why there is none; empty if there is one.
    """

    device: str
    names: tuple[str, ...]
    reason: str


def versions() -> dict[str, str | None]:
    """Return the version of each library that is used, None if it is not installed."""
    found = {"python": platform.python_version(), "bitnet_torch": _version("bitnet-torch")}
    return found | {name: _version(name) for name in LIBRARIES}


def cpu() -> Cpu:
    """Return what is known about the processor."""
    listed = _proc_cpuinfo()
    flags = listed.get("flags", listed.get("Features"))
    present = None if flags is None else tuple(f for f in _FEATURES if f in flags.split())
    return Cpu(
        model=listed.get("model name") or platform.processor() or None,
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        features=present,
    )


def accelerators() -> tuple[Accelerator, ...]:
    """Return both kinds of accelerator, present or not. Claims no memory on any."""
    return (_cuda(), _mps())


def _cuda() -> Accelerator:
    if torch.version.cuda is None and torch.version.hip is None:
        return Accelerator("cuda", (), "this PyTorch is built without CUDA and ROCm")
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Accelerator("cuda", names, "" if names else "no CUDA device")


def _mps() -> Accelerator:
    if not torch.backends.mps.is_built():
        return Accelerator("mps", (), "this PyTorch is built without Metal")
    if not torch.backends.mps.is_available():
        return Accelerator("mps", (), "no Apple GPU")
    return Accelerator("mps", ("Apple GPU",), "")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _usable_cores() -> int | None:
    try:
        return len(psutil.Process().cpu_affinity())
    except AttributeError:
        # macOS has no affinity; there every core is usable.
        return psutil.cpu_count()


def _proc_cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of Linux's list, nothing on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(errors="replace").partition("\n\n")[0]
    return dict(re.findall(r"^([^\t:]+?)\s*: ?(.*)$", first, re.MULTILINE))
