"""The architectures that the report covers, and Triton's names for any other."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import GPUTarget

from bitnet_torch_triton.policy import check_arch

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")


def target_of(arch: str) -> Any:
    """Return the target of ``arch``, a name like ``sm_90`` or ``gfx942``.

    Raises:
        BackendUnavailableError: It is an NVIDIA architecture before sm_80.
        ConfigurationError: It is not the name of an architecture.
    """
    check_arch(arch)
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    # A wavefront has 64 lanes on CDNA, 32 on RDNA.
    return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
