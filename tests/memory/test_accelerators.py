"""CUDA, MPS and other accelerators, played by their documented functions with recorded figures.

None of them was at hand. The shapes are those of the docstrings of ``torch.cuda.memory``,
``torch.mps`` and ``torch.accelerator.memory`` of PyTorch 2.13, nested keys joined by dots.
"""

import pytest
import torch

from bitnet_torch.errors import DeviceError
from bitnet_torch.memory import HybridMemoryPool, MemoryPoolConfig, PressureLevel
from bitnet_torch.memory.native_counts import empty_native_cache
from bitnet_torch.memory.probe import probe
from bitnet_torch.memory.process import bytes_in_use, peak_resident_bytes, resident_bytes

GIB = 1 << 30


def flattened(allocated, reserved):
    """Return what ``torch.cuda.memory_stats`` does after some use."""
    figures = {
        "allocation": (12, 20, 100, 88),
        "allocated_bytes": (allocated, 3 * GIB, 9 * GIB, 9 * GIB - allocated),
        "requested_bytes": (allocated - 100, 3 * GIB - 500, 8 * GIB, 8 * GIB - allocated + 100),
        "reserved_bytes": (reserved, 4 * GIB, 4 * GIB, 4 * GIB - reserved),
        "segment": (4, 5, 9, 5),
        "active": (13, 21, 100, 87),
        "active_bytes": (allocated + 512, 3 * GIB, 9 * GIB, 9 * GIB - allocated - 512),
        "inactive_split": (2, 3, 50, 48),
        "inactive_split_bytes": (4096, 8192, GIB, GIB - 4096),
    }
    fields = ("current", "peak", "allocated", "freed")
    stats = {"num_ooms": 1, "num_alloc_retries": 2, "num_oom_rejections": 0, "max_split_size": -1}
    for metric, values in figures.items():
        for kind in ("all", "large_pool", "small_pool"):
            stats |= {f"{metric}.{kind}.{f}": v for f, v in zip(fields, values, strict=True)}
    return stats


class Cuda:
    """A GPU of 8 GiB of which PyTorch holds a part."""

    def __init__(self, monkeypatch):
        self.allocated, self.reserved, self.share, self.free = GIB, 2 * GIB, 1.0, 5 * GIB
        self.history = []
        fakes = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "current_device": lambda: 0,
            "memory_stats": lambda device=None: flattened(self.allocated, self.reserved),
            "memory_reserved": lambda device=None: self.reserved,
            "mem_get_info": lambda device=None: (self.free, 8 * GIB),
            "get_per_process_memory_fraction": lambda device=None: self.share,
            "empty_cache": self.empty_cache,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(
            torch.cuda.memory,
            "_record_memory_history",
            lambda enabled="all", **how: self.history.append((enabled, how)),
        )

    def empty_cache(self):
        self.reserved = self.allocated + 4096


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_a_gpus_stats_are_those_of_its_allocator(cuda):
    stats = HybridMemoryPool().get_stats("cuda")
    assert (stats.device, stats.source, stats.exact) == ("cuda:0", "cuda", True)
    assert (stats.allocated, stats.peak_allocated) == (GIB, 3 * GIB)
    assert (stats.requested, stats.reserved, stats.peak_reserved) == (GIB - 100, 2 * GIB, 4 * GIB)
    assert (stats.total_allocated, stats.total_freed) == (9 * GIB, 8 * GIB)
    assert (stats.num_allocs, stats.num_frees, stats.num_ooms) == (100, 88, 1)
    assert (stats.inactive_split, stats.idle_fraction) == (4096, 0.5)
    assert (stats.limit, stats.limit_source) == (8 * GIB, "device")
    assert bytes_in_use("cuda:0") == GIB


def test_the_tighter_of_the_device_and_the_process_share_is_the_limit(cuda):
    assert probe("cuda:0").source == "device"
    assert probe("cuda:0").used == 3 * GIB
    cuda.share = 0.25
    usage = probe("cuda:0")
    assert (usage.source, usage.used, usage.limit) == ("fraction", 2 * GIB, 2 * GIB)
    cuda.free = 0
    cuda.share = 0.9
    assert probe("cuda:0").source == "device"
    assert HybridMemoryPool().pressure("cuda").poll() == PressureLevel.CRITICAL


def test_emptying_the_cache_tells_what_the_device_really_got(cuda):
    assert empty_native_cache(torch.device("cuda:0")) == GIB - 4096
    assert empty_native_cache(torch.device("cuda:0")) == 0
    cuda.reserved = 3 * GIB
    pool = HybridMemoryPool()
    assert pool.trim(device="cuda", include_native=True) == 2 * GIB - 4096


@pytest.mark.parametrize(("level", "context"), [("track", None), ("full", "all")])
def test_a_trackers_recording_turns_cudas_history_on_and_off(cuda, monkeypatch, level, context):
    snapshot = {
        "segments": [
            {
                "device": 0, "address": 4096, "total_size": 2 << 20, "stream": 0,
                "segment_type": "small", "segment_pool_id": (0, 0), "allocated_size": 1024,
                "active_size": 1536, "requested_size": 1000, "is_expandable": False, "frames": [],
                "blocks": [
                    {"address": 4096, "size": 1024, "requested_size": 1000, "frames": [],
                     "state": "active_allocated"},
                    {"address": 5120, "size": 512, "requested_size": 500, "frames": [],
                     "state": "active_awaiting_free"},
                    {"address": 5632, "size": 512, "requested_size": 0, "frames": [],
                     "state": "inactive"},
                ],
            }
        ],
        "device_traces": [
            [
                {"action": "segment_alloc", "addr": 4096, "size": 2 << 20, "stream": 0,
                 "frames": [], "time_us": 4, "pool_id": (0, 0)},
                {"action": "alloc", "addr": 4096, "size": 1000, "stream": 0, "frames": [],
                 "time_us": 5, "pool_id": (0, 0)},
                {"action": "oom", "size": 1 << 40, "stream": 0, "frames": [], "device_free": 7},
            ]
        ],
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda device=None: snapshot)
    tracker = HybridMemoryPool().get_memory_tracker()
    with tracker.start(level, max_events=77):
        found = [a for a in tracker.snapshot().allocations if a.device == "cuda:0"]
        assert [(a.address, a.nbytes, a.number) for a in found] == [(4096, 1000, 1)]
    on, off = cuda.history
    assert on == ("all", {"context": context, "stacks": "python", "max_entries": 77})
    assert off[0] is None


def test_a_gpu_that_is_not_there_is_an_error_and_not_a_zero():
    pool = HybridMemoryPool()
    for device in ("cuda", "mps", "xpu"):
        if device == "cuda" and torch.cuda.is_available():
            continue
        if device == "mps" and torch.backends.mps.is_available():
            continue
        with pytest.raises(DeviceError, match="is not available"):
            pool.get_stats(device)


def test_other_accelerators_are_asked_through_the_common_interface(monkeypatch):
    fakes = {
        "is_available": lambda: True,
        "memory_stats": lambda device: flattened(GIB, 2 * GIB),
        "get_memory_info": lambda device: (3 * GIB, 4 * GIB),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.accelerator, name, fake)
    stats = HybridMemoryPool().get_stats("xpu")
    assert (stats.source, stats.allocated, stats.reserved) == ("accelerator", GIB, 2 * GIB)
    assert (stats.limit, stats.limit_source) == (4 * GIB, "device")
    assert probe("xpu:0").used == GIB


def test_metal_keeps_no_peak_and_counts_no_calls(monkeypatch):
    held = [3 * GIB]
    fakes = {
        "current_allocated_memory": lambda: GIB,
        "driver_allocated_memory": lambda: held[0],
        "recommended_max_memory": lambda: 16 * GIB,
        "empty_cache": lambda: held.__setitem__(0, GIB),
    }
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.mps, name, fake)
    pool = HybridMemoryPool(MemoryPoolConfig(device="mps"))
    stats = pool.get_stats()
    assert (stats.source, stats.exact) == ("mps", True)
    assert (stats.allocated, stats.reserved) == (GIB, 3 * GIB)
    assert stats.peak_allocated is stats.num_allocs is stats.total_freed is stats.requested is None
    assert (stats.limit, stats.limit_source) == (16 * GIB, "recommended")
    assert pool.trim(device="mps:0", include_native=True) == 2 * GIB
    assert bytes_in_use("mps") == GIB


class Stream:
    """Stands for a CUDA stream whose work ends when the test says so."""

    def __init__(self):
        self.passed = False

    def record_event(self):
        return self

    def query(self):
        return self.passed


def test_a_lease_that_another_stream_uses_waits_for_it():
    pool, stream = HybridMemoryPool(), Stream()
    lease = pool.allocate(1000)
    lease.record_stream(stream)
    lease.release()
    stats = pool.get_stats()
    assert (stats.pending, stats.cached, stats.live_leases) == (1024, 0, 0)
    other = pool.allocate(1000)
    assert pool.get_stats().misses == 2
    pool.verify()
    stream.passed = True
    assert pool.get_stats().pending == 0
    assert pool.get_stats().cached == 1024
    other.release()
    pool.verify()


def test_the_process_is_asked_of_the_system():
    assert 0 < resident_bytes() <= peak_resident_bytes() * 1.01
    assert bytes_in_use("cpu") > 0
    assert bytes_in_use() > 0
