import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.train.config import ScheduleConfig
from bitnet_torch.train.schedule import learning_rate

LINEAR = ScheduleConfig(steps=11, qat_start=5, warmup=4, decay="linear", floor=0.1)
COSINE = ScheduleConfig(steps=11, qat_start=5, warmup=4, decay="cosine", floor=0.1)


def test_linear_schedule_has_its_golden_values():
    rates = [learning_rate(LINEAR, 10.0, step) for step in range(11)]
    expected = [2.5, 5.0, 7.5, 10.0, 10.0, 8.5, 7.0, 5.5, 4.0, 2.5, 1.0]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_cosine_schedule_has_its_golden_values():
    rates = [learning_rate(COSINE, 10.0, step) for step in (3, 4, 7, 10)]
    assert rates == pytest.approx([10.0, 10.0, 5.5, 1.0], rel=1e-12)


def test_without_warmup_the_first_step_has_the_peak():
    config = ScheduleConfig(steps=3, qat_start=0, warmup=0, floor=0.0)
    assert [learning_rate(config, 2.0, step) for step in range(3)] == [2.0, 1.0, 0.0]


@settings(deadline=None)
@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 499),
    decay=st.sampled_from(("linear", "cosine")),
    floor=st.floats(0, 1),
)
def test_the_rate_rises_to_the_peak_then_falls_to_the_floor(steps, warmup, decay, floor):
    warmup = min(warmup, steps - 1)
    config = ScheduleConfig(steps=steps, qat_start=0, warmup=warmup, decay=decay, floor=floor)
    rates = [learning_rate(config, 1.0, step) for step in range(steps)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == 1.0
    if steps - warmup > 1:
        assert rates[-1] == pytest.approx(floor, abs=1e-12)
