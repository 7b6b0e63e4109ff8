"""Which configurations of a ternary product may be tried on an architecture: a bounded set.

A set holds what the kernels can run at all (whole lanes, groups of 256 codes, rows of a matrix
instruction for each warp), within narrow ranges around the shipped rows. A stored rule must be one
of its set, so a file can ask for nothing that tuning would not try.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from bitnet_torch_triton._launch import KernelConfig
from bitnet_torch_triton.policy import INTERPRETER, rule_for
from bitnet_torch_triton.rules import Rule

OP = "ternary_linear"
# Tokens for which a launch of their own is looked for: from, to. The last is of any larger number.
BUCKETS = ((1, 1), (2, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 512), (513, None))
# Where the last one is measured.
MANY = 2048
# Rows of codes that a warp's matrix instruction takes, and codes of a turn of few tokens.
ROWS, TURN = 16, 512
# Sums that the registers of a warp hold.
SUMS = 2048


@dataclass(frozen=True)
class Problem:
    """A product whose launch is looked for.

    Attributes:
        n: Outputs, of all matrices of a launch.
        k: Inputs.
        least: Smallest number of tokens; with ``most`` one of ``BUCKETS``.
        most: The largest; None for any.
    """

    n: int
    k: int
    least: int
    most: int | None

    @property
    def tokens(self) -> int:
        """Number of tokens that it is measured with."""
        return MANY if self.most is None else self.most

    def shipped(self, arch: str) -> Rule:
        """Return the row of the shipped table that serves it."""
        return rule_for(OP, arch, self.tokens, self.n, self.k)

    def rule(self, kernel: str, config: KernelConfig, arch: str) -> Rule:
        """Return the row that would serve it, and nothing else."""
        return Rule(OP, config, kernel, arch, self.most, f"{self.n}x{self.k}", self.least)

    def __str__(self) -> str:
        upto = "and more" if self.most is None else f"to {self.most}"
        tokens = f"{self.least}" if self.least == self.most else f"{self.least} {upto}"
        return f"{self.n}x{self.k}, {tokens} tokens"


def candidates(problem: Problem, arch: str) -> list[Rule]:
    """Return the rules worth a try, the shipped row's configuration first, none twice."""
    shipped = problem.shipped(arch)
    found = [problem.rule(shipped.kernel, shipped.config, arch)]
    found += [problem.rule(k, config, arch) for k, config in _configs(problem, arch)]
    return list(dict.fromkeys(found))


def _configs(problem: Problem, arch: str) -> Iterator[tuple[str, KernelConfig]]:
    if problem.most == 1:
        yield from (("gemv", config) for config in _gemv(arch))
    elif problem.tokens <= 8 and arch.startswith("sm_"):
        yield from (("few", config) for config in _few())
    else:
        kernel = "wgmma" if arch == "sm_90" else "gemm"
        yield from ((kernel, config) for config in _gemm(problem.tokens, arch))


def _gemv(arch: str) -> Iterator[KernelConfig]:
    if arch == INTERPRETER:
        yield from (KernelConfig(block_n=n, block_k=2048) for n in (16, 32))
        return
    lanes_of_a_warp = 64 if arch.startswith("gfx9") else 32
    ranges = (2, 4, 8), (1, 2, 4), (256, 512), (1, 4), (1, 2, 4)
    for warps, rows, k, split, unroll in product(*ranges):
        # Each lane has 16 bytes of ``rows`` rows.
        down, rest = divmod(warps * lanes_of_a_warp, (k // 64) * split)
        if not rest and down:
            yield KernelConfig(
                block_n=down * rows,
                block_k=k,
                rows=rows,
                split_k=split,
                unroll=unroll,
                num_warps=warps,
            )


def _few() -> Iterator[KernelConfig]:
    for n, warps, split in product((16, 32, 64, 128, 256), (2, 4, 8), (1, 2, 4, 8)):
        # Of 128 rows of a warp the sums would not fit the registers.
        if split <= warps and n // (warps // split) in (ROWS, 2 * ROWS, 4 * ROWS):
            yield KernelConfig(block_n=n, block_k=TURN, split_k=split, num_warps=warps)


def _gemm(tokens: int, arch: str) -> Iterator[KernelConfig]:
    wide = [m for m in (16, 32, 64, 128) if m <= max(16, tokens)]
    stages = (2,) if arch == INTERPRETER else (3, 4) if arch == "sm_90" else (2, 3, 4, 5)
    for m, n, warps, deep in product(wide, (64, 128), (4, 8), stages):
        # Each warp has rows of its own, so that none unpacks what another has unpacked, and its
        # sums fit the registers.
        if n >= warps * ROWS and m * n <= warps * SUMS:
            yield KernelConfig(block_m=m, block_n=n, block_k=64, num_warps=warps, num_stages=deep)
