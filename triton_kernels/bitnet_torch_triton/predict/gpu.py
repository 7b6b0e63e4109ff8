"""Rates of GPUs: out of data sheets, but for the two fields that are assumed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As printed.
        sms: Streaming multiprocessors, or compute units.
        ghz: Boost clock.
        dram_gb_s: Memory bandwidth, 10^9 bytes per second.
        l2_gb_s: Bandwidth of the last-level cache; assumed.
        l2_mb: Its size.
        issue_lanes: Instructions of a lane that an SM starts per clock.
        integer_lanes: Of these, logic and integer ones.
        int8_tops: Dense int8 matrix products, 10^12 operations (two a multiply-add) per second.
        bf16_tflops: The same for bfloat16.
        gap_us: From the end of a kernel in a graph to the start of its successor; assumed.
        latency_us: Of a load that no cache holds; assumed.
    """

    name: str
    sms: int
    ghz: float
    dram_gb_s: float
    l2_gb_s: float
    l2_mb: float
    issue_lanes: int
    integer_lanes: int
    int8_tops: float
    bf16_tflops: float
    gap_us: float
    latency_us: float


A100 = Gpu("A100 40GB", 108, 1.41, 1555, 4000, 40, 128, 64, 624, 312, 1.3, 0.60)
H100 = Gpu("H100 SXM", 132, 1.83, 3350, 5500, 50, 128, 64, 1979, 989, 1.2, 0.65)
RTX_4090 = Gpu("RTX 4090", 128, 2.52, 1008, 4000, 72, 128, 64, 660, 165, 1.2, 0.55)
# Four SIMDs of 16 lanes start every instruction; the last-level cache is the Infinity Cache.
MI300X = Gpu("MI300X", 304, 2.10, 5300, 11000, 256, 64, 64, 2615, 1307, 2.0, 0.80)
GPUS = (A100, H100, RTX_4090, MI300X)
