"""The time of one kernel, from the work that it has and the rates of a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_torch_triton.predict.gpu import Gpu

# Shares of a data sheet's rates that good kernels reach.
MEMORY_SHARE = 0.85
MATRIX_SHARE = 0.65
# Barriers, shuffles and divisions of a kernel that reduces rows.
REDUCTION_US = 0.4


@dataclass(frozen=True)
class Launch:
    """One kernel of a step.

    Attributes:
        name: What it does.
        nbytes: Bytes that it must move.
        depth: Memory latencies that follow one another: a load and the store behind it are 2.
        instructions: Of all lanes.
        integer: Of these, integer and logic ones.
        int8_ops: Operations on int8 matrix units.
        bf16_ops: Operations on bfloat16 matrix units.
        reductions: How often rows are reduced across a program.
        cached: The bytes lie in the last-level cache.
        share: Of the matrix units' rate, what the grid and the tiles let it have.
    """

    name: str
    nbytes: float
    depth: int = 2
    instructions: float = 0.0
    integer: float = 0.0
    int8_ops: float = 0.0
    bf16_ops: float = 0.0
    reductions: int = 0
    cached: bool = False
    share: float = MATRIX_SHARE

    def bound(self, gpu: Gpu) -> tuple[str, float]:
        """Return what the kernel waits for, and how many microseconds that takes."""
        bandwidth = gpu.l2_gb_s if self.cached else gpu.dram_gb_s
        clock = gpu.sms * gpu.ghz * 1e3
        limits = {
            "memory": self.nbytes / (bandwidth * MEMORY_SHARE * 1e3),
            "instructions": self.instructions / (clock * gpu.issue_lanes),
            "integer": self.integer / (clock * gpu.integer_lanes),
            "int8 matrix": self.int8_ops / (gpu.int8_tops * self.share * 1e6),
            "bf16 matrix": self.bf16_ops / (gpu.bf16_tflops * self.share * 1e6),
        }
        what = max(limits, key=lambda name: limits[name])
        return what, limits[what]

    def microseconds(self, gpu: Gpu) -> float:
        """Return the time from the end of the kernel before to the end of this one."""
        fixed = gpu.gap_us + self.depth * gpu.latency_us + self.reductions * REDUCTION_US
        return fixed + self.bound(gpu)[1]


def microseconds(launches: list[Launch], gpu: Gpu) -> float:
    """Return the time of launches that wait for one another."""
    return sum(launch.microseconds(gpu) for launch in launches)
