"""What the report compiles a kernel with: types, constants and a launch configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitnet_torch_triton._launch import KernelConfig

# A type like "*fp32", "i32" or "None", or those of the members of a tuple argument.
Signature = tuple["str | Signature", ...]


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is shipped.

    Attributes:
        kernel: Its name.
        signature: The types of its run-time arguments in order, ``{f}`` being x's dtype.
        constants: Its compile-time arguments by name.
        config: How it is launched.
        archs: Prefix of the architectures that it is shipped for; empty for all.
        but: Longer prefixes of architectures that have variants of their own.
        weights: Weights that a program multiplies in one turn of its main loop; 0 if it has none.
        matrix: Whether its products belong on matrix or dot instructions.
        float_sums: Whether its contract bounds sums with and without fused products alike.
        round_sizes: Whether its integers are multiples of 16, as in nearly every model; or the
            names of those that are.
    """

    kernel: str
    signature: Signature
    constants: Mapping[str, Any]
    config: KernelConfig
    archs: str = ""
    but: tuple[str, ...] = ()
    weights: int = 0
    matrix: bool = False
    float_sums: bool = False
    round_sizes: bool | tuple[str, ...] = False

    def serves(self, arch: str) -> bool:
        """Return whether it is shipped for an architecture."""
        return arch.startswith(self.archs) and not arch.startswith(self.but)

    @property
    def has_float(self) -> bool:
        """Whether it is compiled once for each dtype of x."""
        return "{f}" in str(self.signature)

    def is_round(self, name: str) -> bool:
        """Return whether an integer argument is a multiple of 16."""
        sizes = self.round_sizes
        return sizes if isinstance(sizes, bool) else name in sizes

    @property
    def _rounded(self) -> str:
        if isinstance(self.round_sizes, tuple):
            return "round " + ",".join(self.round_sizes)
        return "round sizes" if self.round_sizes else ""

    @property
    def label(self) -> str:
        """A name that tells it from the kernel's other variants."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        absent = [str(i) for i, kind in enumerate(self.signature) if kind == "None"]
        members = [kind for kind in self.signature if isinstance(kind, tuple)]
        parts = (
            " ".join(f"x{len(kind)}" for kind in members),
            constants,
            f"warps={self.config.num_warps}",
            f"without {','.join(absent)}" if absent else "",
            self._rounded,
        )
        return " ".join(part for part in parts if part)


def typed(signature: Signature, f: str) -> Signature:
    """Return ``signature`` with ``f`` in the place of x's dtype."""
    return tuple(
        kind.replace("{f}", f) if isinstance(kind, str) else typed(kind, f) for kind in signature
    )
