"""What the machine can do at most, measured in the run whose figures are held against it.

A call must read its bytes and do its multiply-accumulates. The longer of the two, at the best
rate that this machine has shown, is the time below which no program gets; the fraction of a
row is that time by the measured one. The rates are the best of several attempts, not the
median: a limit is not what a busy machine reaches on average.

The integer rate is that of the instruction which the instruction set in use multiplies with.
A kernel that needs further instructions to unpack its codes does not reach 1.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bitnet_torch.bench.buffers import last_level_cache
from bitnet_torch.errors import BackendUnavailableError

STREAMS = (1, 2, 4, 8)
ATTEMPTS = 7
_SAMPLE_SECONDS = 5e-3
# Name of an instruction set -> the instruction of cpu/limits.cpp that it multiplies with.
_UNITS = {
    "scalar": "plain",
    "avx2": "maddubs256",
    "avx512": "maddubs512",
    "avxvnni": "vnni256",
    "avx512vnni": "vnni512",
}


@dataclass(frozen=True)
class ReadRate:
    """The best rate of reading a buffer that no cache holds.

    Attributes:
        threads: Threads that read.
        streams: Linear walks of each thread, side by side.
        gb_per_s: 10^9 bytes per second.
    """

    threads: int
    streams: int
    gb_per_s: float


@dataclass(frozen=True)
class Limits:
    """The rates of one device with one number of threads.

    Attributes:
        memory_gb_per_s: Reading what no cache holds; on CUDA, copying, read and written bytes.
        cache_gb_per_s: Reading again what the last-level cache holds.
        gmac_per_s: 10^9 multiply-accumulates of int8 per second; None where the harness does not
            know the instruction.
        unit: What they were measured with.
        reads: The single rates, by threads and streams.
    """

    memory_gb_per_s: float
    cache_gb_per_s: float
    gmac_per_s: float | None
    unit: str
    reads: tuple[ReadRate, ...] = ()

    def bound(self, nbytes: int, macs: int, cold: bool) -> Bound | None:
        """Return the least seconds that a call of this size can take; None if not known."""
        rate = self.memory_gb_per_s if cold else self.cache_gb_per_s
        reading = nbytes / rate * 1e-9
        if not macs:
            return Bound("memory" if cold else "cache", reading)
        if self.gmac_per_s is None:
            return None
        multiplying = macs / self.gmac_per_s * 1e-9
        if multiplying > reading:
            return Bound("integer", multiplying)
        return Bound("memory" if cold else "cache", reading)


@dataclass(frozen=True)
class Bound:
    """The least time of a call, and what sets it: ``"memory"``, ``"cache"`` or ``"integer"``."""

    what: str
    seconds: float


def measure_limits(threads: int, device: str = "cpu", attempts: int = ATTEMPTS) -> Limits:
    """Measure the limits of a device.

    Args:
        threads: Threads of the CPU that the figures use.
        device: ``"cpu"`` or ``"cuda"``.
        attempts: The best of so many counts.

    Raises:
        BackendUnavailableError: The CPU kernels are not built, or there is no such device.
    """
    if device == "cuda":
        return _cuda_limits(attempts)
    if device != "cpu":
        raise BackendUnavailableError(f"no limits are known for device {device!r}", device=device)
    from bitnet_torch.cpu import isa
    from bitnet_torch.cpu.large_pages import ask_large_pages

    large = torch.empty(max(4 * last_level_cache(), 64 << 20), dtype=torch.uint8)
    ask_large_pages(large)  # as for weights: small pages are read up to a tenth slower
    large.fill_(1)
    small = large[: last_level_cache() // 4]
    counts = sorted({1, threads})
    reads = tuple(
        ReadRate(n, s, _read_rate(large, s, n, attempts)) for n in counts for s in STREAMS
    )
    unit = _UNITS.get(isa.current().replace("_", "").replace("-", ""))
    return Limits(
        memory_gb_per_s=max(r.gb_per_s for r in reads if r.threads == threads),
        cache_gb_per_s=max(_read_rate(small, s, threads, attempts) for s in STREAMS),
        gmac_per_s=None if unit is None else _mac_rate(unit, threads, attempts),
        unit=unit or f"unknown for {isa.current()}",
        reads=reads,
    )


def _read_rate(data: torch.Tensor, streams: int, threads: int, attempts: int) -> float:
    from bitnet_torch.cpu._library import INT, POINTER, SIZE, function

    read = function("limit_read", POINTER, SIZE, INT, INT, POINTER)
    fold = ctypes.c_uint64()
    seconds = _best(
        lambda: read(data.data_ptr(), data.numel(), streams, threads, ctypes.byref(fold)),
        attempts,
    )
    return data.numel() / seconds * 1e-9


def _mac_rate(unit: str, threads: int, attempts: int) -> float:
    from bitnet_torch.cpu._library import INT, SIZE, function

    macs = function("limit_macs", ctypes.c_char_p, SIZE, INT, restype=SIZE)
    name = unit.encode()
    if macs(name, 1, 1) < 0:
        raise BackendUnavailableError(f"this machine or build has no {unit}", unit=unit)
    rounds = 1
    while _best(functools.partial(macs, name, rounds, threads), 1) < _SAMPLE_SECONDS:
        rounds *= 2
    seconds = _best(functools.partial(macs, name, rounds, threads), attempts)
    return int(macs(name, rounds, threads)) / seconds * 1e-9


def _best(call: Callable[[], object], attempts: int) -> float:
    taken = []
    for _ in range(attempts):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _cuda_limits(attempts: int) -> Limits:
    if not torch.cuda.is_available():
        raise BackendUnavailableError("there is no CUDA device here", device="cuda")
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a = torch.ones((8192, 8192), dtype=torch.int8, device="cuda")
    b = a.T
    copying = _best_on_cuda(lambda: target.copy_(source), attempts)
    few = source[: 8 << 20]
    rereading = _best_on_cuda(lambda: target[: 8 << 20].copy_(few), attempts)
    multiplying = _best_on_cuda(lambda: torch._int_mm(a, b), attempts)
    return Limits(
        memory_gb_per_s=2 * source.numel() / copying * 1e-9,
        cache_gb_per_s=2 * few.numel() / rereading * 1e-9,
        gmac_per_s=8192**3 / multiplying * 1e-9,
        unit="torch._int_mm 8192",
    )


def _best_on_cuda(call: Callable[[], object], attempts: int) -> float:
    call()
    times: Sequence[float] = [_cuda_seconds(call) for _ in range(attempts)]
    return min(times)


def _cuda_seconds(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3
