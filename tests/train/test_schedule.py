import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitnet_torch.train.config import OptimizerConfig, ScheduleConfig
from bitnet_torch.train.optimizer import make_optimizer
from bitnet_torch.train.schedule import learning_rate, set_rates, strength_at, weight_decay

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


TWO_STAGES = ScheduleConfig(
    steps=8, qat_start=0, warmup=2, decay="two-stage", floor=0.0, second_peak=0.5, switch_at=0.5
)


def test_two_stages_have_their_golden_values():
    rates = [learning_rate(TWO_STAGES, 10.0, step) for step in range(8)]
    # The line falls by 2 a step from step 2; from step 4 on it counts half.
    assert rates == pytest.approx([5.0, 10.0, 10.0, 8.0, 3.0, 2.0, 1.0, 0.0], rel=1e-12)
    decays = [weight_decay(TWO_STAGES, 0.1, step) for step in range(8)]
    assert decays == [0.1] * 4 + [0.0] * 4


def test_the_published_recipe_drops_from_its_first_to_its_second_rate_half_way():
    # Training Tips, table 2, 700M: 1.5e-3 to 1e-3, warm-up 375, decay 0.1 to 0.
    config = ScheduleConfig(steps=100_000, qat_start=0, warmup=375, decay="two-stage", floor=0.0)
    assert learning_rate(config, 1.5e-3, 375) == 1.5e-3
    before, after = (learning_rate(config, 1.5e-3, step) for step in (49_999, 50_000))
    line = 1 - (50_000 - 375) / (99_999 - 375)
    assert before == pytest.approx(1.5e-3 * line, rel=1e-4)
    assert after == pytest.approx(1.0e-3 * line, rel=1e-12)
    assert weight_decay(config, 0.1, 49_999) == 0.1
    assert weight_decay(config, 0.1, 50_000) == 0.0


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_one_stage_keeps_its_decay(decay):
    config = ScheduleConfig(steps=8, qat_start=0, warmup=2, decay=decay)
    assert [weight_decay(config, 0.1, step) for step in range(8)] == [0.1] * 8


def test_the_warm_up_has_its_golden_values():
    assert [strength_at(4, step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert strength_at(1000, 1) == 0.001
    assert strength_at(0, 0) == 1.0


def test_groups_get_the_rate_and_decay_of_their_kind():
    model = nn.ModuleDict(
        {"embed": nn.Embedding(4, 4), "a": nn.Linear(4, 4), "lm_head": nn.Linear(4, 4)}
    )
    config = OptimizerConfig(learning_rate=10.0, matrix_rate=2.0, embedding_rate=0.5)
    optimizer = make_optimizer(model, config)
    for step, decay in ((3, 0.1), (5, 0.0)):
        rate = set_rates(optimizer, TWO_STAGES, config, step)
        got = {g["kind"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
        assert got == {
            "matrices": (rate * 2, decay),
            "head": (rate, decay),
            "embeddings": (rate / 2, 0.0),
            "norms": (rate, 0.0),
        }
