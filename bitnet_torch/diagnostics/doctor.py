"""What this installation can do, found out by asking it and not by assuming.

The report says which backend serves which op on which device, and for each backend that
does not, why. Each device that is present also runs a small layer, whose bits must be those
of the reference. Problems make an installation unusable; notes are facts that cost speed
or a feature.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bitnet_torch.assets import bundled_model
from bitnet_torch.diagnostics import machine
from bitnet_torch.diagnostics.machine import Accelerator, Cpu
from bitnet_torch.errors import BitNetError

if TYPE_CHECKING:
    from bitnet_torch.diagnostics.kernels import Kernels


@dataclass(frozen=True)
class BundledModel:
    """The model that comes with the package: where it should be, and its bytes if it is."""

    path: str
    bytes: int | None


@dataclass(frozen=True)
class DoctorReport:
    """Everything ``bitnet doctor`` knows.

    Attributes:
        versions: Library to version, None if it is not installed.
        platform: Operating system and architecture.
        cpu: The processor.
        accelerators: CUDA and Metal devices, or why there are none.
        kernels: None if the kernels could not be loaded; then ``problems`` says why.
        model: The bundled model.
        notes: What works, but slower or with less than it could.
        problems: What is broken. Empty for a usable installation.
    """

    versions: dict[str, str | None]
    platform: str
    cpu: Cpu
    accelerators: tuple[Accelerator, ...]
    kernels: Kernels | None
    model: BundledModel
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing is broken."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"usable": self.usable, **asdict(self)}


def examine() -> DoctorReport:
    """Look at this installation and try it out."""
    accelerators = machine.accelerators()
    present = ("cpu", *(a.device for a in accelerators if a.names))
    kernels: Kernels | None = None
    problems: list[str] = []
    try:
        # This loads every backend, and one that is broken raises here.
        from bitnet_torch.diagnostics.graphs import DIFFERS
        from bitnet_torch.diagnostics.kernels import examine_kernels

        kernels = examine_kernels(present)
    except (BitNetError, OSError, ImportError) as error:
        problems.append(f"the kernels cannot be loaded: {type(error).__name__}: {error}")
    else:
        problems += [
            f"{device}: a small layer does not have the bits of the reference"
            for device, same in kernels.checks.items()
            if not same
        ]
        problems += [f"{device}: {why}" for device, why in kernels.graphs.items() if why == DIFFERS]
    model = _bundled_model()
    return DoctorReport(
        versions=machine.versions(),
        platform=platform.platform(),
        cpu=machine.cpu(),
        accelerators=accelerators,
        kernels=kernels,
        model=model,
        notes=tuple(_notes(kernels, present, model)),
        problems=tuple(problems),
    )


def _bundled_model() -> BundledModel:
    folder = bundled_model()
    files = [path for path in folder.glob("*") if path.is_file()]
    whole = any(path.suffix == ".safetensors" for path in files)
    return BundledModel(str(folder), sum(p.stat().st_size for p in files) if whole else None)


def _notes(kernels: Kernels | None, present: tuple[str, ...], model: BundledModel) -> list[str]:
    notes = []
    for backend in kernels.backends if kernels else ():
        if backend.reason and backend.device in present:
            notes.append(
                f"{backend.device}: the reference serves, which is slow, because the "
                f"{backend.name} backend is not loaded: {backend.reason}"
            )
    if model.bytes is None:
        notes.append(f"`bitnet demo` has no model: {model.path} is absent")
    return notes
