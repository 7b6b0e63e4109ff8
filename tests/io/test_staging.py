"""Weights reach a GPU through two buffers of the pool, whole and in order.

No GPU is at hand: the CPU plays one (`_staged` is what a CUDA device switches on), with events that
remember what was asked of them. The same test runs on a device where there is one.
"""

import pytest
import torch

from bitnet_torch.io import staging
from bitnet_torch.io.staging import TAG, Staging
from bitnet_torch.memory import HybridMemoryPool, MemoryPoolConfig
from tests.bits import same_bits


class Event:
    """Stands for torch.cuda.Event; nothing that it marks is ever late."""

    log: list

    def record(self):
        self.log.append("record")

    def synchronize(self):
        self.log.append("synchronize")


@pytest.fixture
def pool():
    pool = HybridMemoryPool()
    yield pool
    pool.verify()
    assert pool.get_stats().live_leases == 0


@pytest.fixture
def staged(pool, monkeypatch):
    monkeypatch.setattr(staging, "BUFFER_BYTES", 1 << 10)
    Event.log = []
    made = Staging(torch.device("cpu"), pool, pinned=False, event=Event)
    made._staged = True
    return made


@pytest.mark.parametrize("shape", [(1,), (256,), (257,), (3, 1000), (64, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_every_byte_arrives_whatever_the_size(staged, shape, dtype):
    tensor = torch.randint(0, 256, shape).to(dtype)
    with staged as through:
        assert same_bits(through.copy(tensor), tensor)
        assert same_bits(through.copy(tensor[..., ::3]), tensor[..., ::3])
        assert same_bits(through.copy(tensor, torch.float32), tensor.to(torch.float32))


def test_two_buffers_are_leases_for_as_long_as_it_lasts(staged, pool):
    with staged as through:
        assert pool.lease_tags() == {}
        through.copy(torch.ones(5000))
        assert pool.lease_tags() == {TAG: (2 << 10, 2)}
        through.copy(torch.ones(3))
        assert pool.get_stats().live_leases == 2
    assert pool.get_stats().live_leases == 0


def test_a_buffer_is_written_again_only_after_its_mark_was_passed(staged):
    with staged as through:
        through.copy(torch.ones(4 << 10, dtype=torch.uint8))
        assert Event.log == ["synchronize", "record"] * 4
        Event.log.clear()
    assert Event.log == ["synchronize"] * 2


def test_empty_tensors_and_other_devices_take_no_detour(staged, pool):
    with staged as through:
        assert through.copy(torch.ones(0, 3)).shape == (0, 3)
    with Staging(torch.device("cpu"), pool) as through:
        tensor = torch.ones(3)
        assert through.copy(tensor) is tensor
    assert pool.get_stats().misses == 0


def test_without_pinned_memory_tensors_are_copied_and_the_reason_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(staging, "BUFFER_BYTES", 1 << 10)
    pool = HybridMemoryPool(MemoryPoolConfig(hard_limit=1 << 10))
    made = Staging(torch.device("cpu"), pool, pinned=False, event=Event)
    made._staged = True
    Event.log = []
    with made as through:
        assert torch.equal(through.copy(torch.ones(5)), torch.ones(5))
        assert torch.equal(through.copy(torch.ones(6)), torch.ones(6))
    assert caplog.text.count("weights are copied without pinned memory") == 1
    assert "exceed the pool's limit of 1024" in caplog.text
    assert pool.get_stats().live_leases == 0


@pytest.mark.cuda
def test_a_gpu_gets_the_same_bytes(monkeypatch):
    monkeypatch.setattr(staging, "BUFFER_BYTES", 1 << 20)
    pool, tensor = HybridMemoryPool(), torch.randn(3_000_001)
    with Staging(torch.device("cuda"), pool) as through:
        assert same_bits(through.copy(tensor).cpu(), tensor)
        assert pool.lease_tags() == {TAG: (2 << 20, 2)}
