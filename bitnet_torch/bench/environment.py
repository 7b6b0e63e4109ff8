"""The machine, the software and the moment of a figure."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from bitnet_torch import ops
from bitnet_torch.diagnostics import machine
from bitnet_torch.train.provenance import git_commit

_VERSIONS = ("python", "bitnet_torch", "torch", "triton", "numpy")


@dataclass(frozen=True)
class Environment:
    """Where and with what a figure was measured.

    Attributes:
        machine: The processor, or the GPU, and the number of its cores.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        isa: Instruction set of the CPU kernels; empty if they do not serve.
        backend: The backend that serves the linear op.
        threads: Threads of the CPU.
        versions: Library to version, None if it is not installed.
        commit: Of the checkout; None outside of one.
        dirty: Whether tracked files differed from it.
        utc: When the run began.
        load_average: Of the last minute, when the run began; None where there is none. Above
            the number of cores the figures are those of a busy machine.
    """

    machine: str
    device: str
    isa: str
    backend: str
    threads: int
    versions: dict[str, str | None]
    commit: str | None
    dirty: bool
    utc: str
    load_average: float | None


def describe_environment(device: str = "cpu") -> Environment:
    """Return the environment of a run that begins now."""
    from bitnet_torch.cpu import isa

    backend = ops.serving_backend(device)
    found = machine.versions()
    commit = git_commit(Path(__file__).parent)
    return Environment(
        machine=_machine(device),
        device=device,
        isa=isa.current() if backend == "cpu" else "",
        backend=backend,
        threads=torch.get_num_threads(),
        versions={name: found[name] for name in _VERSIONS},
        commit=None if commit is None else commit.removesuffix("-dirty"),
        dirty=commit is not None and commit.endswith("-dirty"),
        utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def file_stem(environment: Environment) -> str:
    """Return the machine's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", environment.machine.lower()).strip("-")


def _machine(device: str) -> str:
    cpu = machine.cpu()
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = cpu.model or platform.machine()
    vector = next((f for f in ("avx512f", "avx2", "asimd") if f in (cpu.features or ())), "")
    # Virtual machines hide the model's number; the widest vectors tell generations apart.
    return " ".join(part for part in (model, vector, f"{cpu.cores} cores") if part)
