"""Which configuration a kernel is launched with: the shipped table, as data.

A row is for an op, on one architecture or on all, for so many tokens at most, and for one class
of shapes or for all (:func:`bitnet_torch_triton.policy.shape_class`). The first row that fits
serves, so a particular one stands before a general one. ``kernel`` names the kernel where an op
has several.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_torch_triton._launch import KernelConfig


@dataclass(frozen=True)
class Rule:
    """One row.

    Attributes:
        op: Whose launches it is for.
        config: How they are launched.
        kernel: Which of the op's kernels is launched; empty where there is one.
        arch: ``sm_90``, ``gfx942`` ...; a prefix (``sm_``, ``gfx``) serves all that begin so,
            and the empty one all there are.
        most_tokens: The largest number of tokens that it is for; None for any number.
        shape: A class of shapes, or ``"NxK"`` for one shape; None for all.
    """

    op: str
    config: KernelConfig
    kernel: str = ""
    arch: str = ""
    most_tokens: int | None = None
    shape: str | None = None


RULES: tuple[Rule, ...] = (
    Rule("ternary_linear", KernelConfig(block_r=4, block_k=512), kernel="vector", most_tokens=1),
    Rule(
        "ternary_linear",
        KernelConfig(block_m=16, block_r=16, block_k=128),
        kernel="tile",
        most_tokens=16,
    ),
    Rule("ternary_linear", KernelConfig(block_m=64, block_r=32, block_k=64), kernel="tile"),
)
