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
        least_tokens: The smallest number of tokens that it is for.
    """

    op: str
    config: KernelConfig
    kernel: str = ""
    arch: str = ""
    most_tokens: int | None = None
    shape: str | None = None
    least_tokens: int = 0


def _one(config: KernelConfig, arch: str, shape: str | None = None) -> Rule:
    return Rule("ternary_linear", config, "gemv", arch, most_tokens=1, shape=shape)


def _few(config: KernelConfig, arch: str, shape: str | None = None) -> Rule:
    return Rule("ternary_linear", config, "few", arch, most_tokens=8, shape=shape)


def _gemm(arch: str, most: int | None, m: int, n: int, warps: int, stages: int) -> Rule:
    config = KernelConfig(block_m=m, block_n=n, block_k=64, num_warps=warps, num_stages=stages)
    kernel = "wgmma" if arch == "sm_90" else "gemm"
    return Rule("ternary_linear", config, kernel, arch, most)


RULES: tuple[Rule, ...] = (
    # Few programs, for what counts in the interpreter is the number of operations.
    _one(KernelConfig(block_n=32, block_k=2048), "interpreter"),
    # With few rows several groups of lanes share one, so that more loads are in flight.
    _one(KernelConfig(block_n=8, rows=2, block_k=512, split_k=4, unroll=4), "sm_", "few rows"),
    _one(KernelConfig(block_n=64, rows=4, block_k=512, unroll=2), "sm_"),
    _few(KernelConfig(block_n=32, block_k=512, split_k=4), "sm_", "few rows"),
    _few(KernelConfig(block_n=128, block_k=512), "sm_"),
    _one(KernelConfig(block_n=128, rows=4, block_k=512), "gfx9"),
    _one(KernelConfig(block_n=64, rows=4, block_k=512), "gfx1"),
    # Each warp owns 16 rows of codes or more, so that none unpacks what another has unpacked.
    _gemm("interpreter", 16, 16, 64, 4, 2),
    _gemm("interpreter", None, 64, 128, 4, 2),
    _gemm("sm_90", 16, 16, 64, 4, 4),
    _gemm("sm_90", 64, 64, 128, 8, 4),
    _gemm("sm_90", None, 128, 128, 8, 4),
    _gemm("sm_10", 16, 16, 128, 4, 4),
    _gemm("sm_10", None, 64, 128, 8, 3),
    _gemm("sm_", 16, 16, 64, 4, 5),
    _gemm("sm_", 32, 32, 128, 4, 4),
    _gemm("sm_", None, 64, 128, 4, 3),
    _gemm("gfx11", None, 32, 64, 4, 2),
    _gemm("gfx", 16, 16, 128, 4, 2),
    _gemm("gfx", None, 64, 128, 4, 2),
)
