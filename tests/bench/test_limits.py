"""The machine's limits: that they are measured, and what a call owes to them."""

import pytest

from bitnet_torch.bench import limits
from bitnet_torch.bench.buffers import copies_for, last_level_cache
from bitnet_torch.bench.limits import Bound, Limits, measure_limits
from bitnet_torch.cpu import isa
from bitnet_torch.errors import BackendUnavailableError

RATES = Limits(memory_gb_per_s=10.0, cache_gb_per_s=40.0, gmac_per_s=100.0, unit="maddubs256")


def test_the_longer_of_reading_and_multiplying_is_the_limit():
    # 10^9 bytes at 10^10 a second; 10^9 products at 10^11 a second.
    assert RATES.bound(10**9, 10**9, cold=True) == Bound("memory", pytest.approx(0.1))
    assert RATES.bound(10**9, 10**9, cold=False) == Bound("cache", pytest.approx(0.025))
    assert RATES.bound(10**9, 10**11, cold=True) == Bound("integer", pytest.approx(1.0))


def test_without_a_known_instruction_there_is_no_limit_but_for_pure_reading():
    unknown = Limits(10.0, 40.0, None, "unknown for sve")
    assert unknown.bound(10**9, 1, cold=True) is None
    assert unknown.bound(10**9, 0, cold=True) == Bound("memory", pytest.approx(0.1))


def test_every_rate_of_this_machine_is_measured(threads, monkeypatch):
    monkeypatch.setattr(limits, "last_level_cache", lambda: 1 << 20)
    threads(1)
    found = measure_limits(threads=1, attempts=1)
    assert found.memory_gb_per_s > 0
    assert found.cache_gb_per_s > 0
    assert {r.streams for r in found.reads} == set(limits.STREAMS)
    assert found.memory_gb_per_s == max(r.gb_per_s for r in found.reads)


@pytest.mark.parametrize("name", isa.available())
def test_every_instruction_set_of_this_machine_has_its_peak(name, monkeypatch):
    monkeypatch.setattr(limits, "last_level_cache", lambda: 1 << 20)
    with isa.forced(name):
        found = measure_limits(threads=1, attempts=1)
    assert found.gmac_per_s is not None
    assert found.gmac_per_s > 0


def test_a_device_without_limits_is_refused():
    with pytest.raises(BackendUnavailableError, match="'xpu'"):
        measure_limits(1, "xpu")


@pytest.mark.cuda
def test_copying_and_multiplying_are_measured_on_cuda():
    found = measure_limits(1, "cuda", attempts=3)
    assert found.memory_gb_per_s > 0
    assert found.gmac_per_s > 0


def test_cold_buffers_are_more_than_the_cache_holds():
    cache = last_level_cache()
    for nbytes in (cache // 1000, cache // 3, cache, 5 * cache):
        count = copies_for(nbytes, "cold")
        assert count >= 2
        # When one comes round again, all the others have been read in between.
        assert (count - 1) * nbytes >= cache
    assert copies_for(cache, "warm") == 1
    assert copies_for(64, "cold") == 1
