import math

import pytest
import torch

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models import ModelConfig
from bitnet_torch.models.rope_scaling import RopeScaling, frequencies
from bitnet_torch.models.rotary import rotary_tables
from tests.bits import same_bits
from tests.models.tiny import tiny_config, tiny_model

LLAMA3 = RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = RopeScaling("yarn", 4.0, 64, beta_fast=32.0, beta_slow=1.0, attention_factor=1.25)
THETA, D = 10000.0, 16


def test_linear_scaling_is_interpolation_of_positions():
    plain = frequencies(D, THETA, None)
    assert torch.equal(frequencies(D, THETA, RopeScaling("linear", 4.0)), plain / 4)


def test_dynamic_scaling_changes_nothing_within_the_context():
    plain, scaled = (
        rotary_tables(D, THETA, 9),
        rotary_tables(D, THETA, 9, RopeScaling("dynamic", 2.0)),
    )
    assert all(same_bits(a, b) for a, b in zip(plain, scaled, strict=True))


def test_llama3_keeps_short_waves_and_slows_long_ones():
    plain, scaled = frequencies(D, THETA, None), frequencies(D, THETA, LLAMA3)
    for f, g in zip(plain.tolist(), scaled.tolist(), strict=True):
        wave = 2 * math.pi / f
        if wave < 64 / 4:
            assert g == pytest.approx(f, rel=1e-15)
        elif wave > 64:
            assert g == pytest.approx(f / 8, rel=1e-15)
        else:
            a = (64 / wave - 1) / 3
            assert g == pytest.approx((1 - a) * f / 8 + a * f, rel=1e-14)
    assert len({round(a / b, 3) for a, b in zip(plain.tolist(), scaled.tolist(), strict=True)}) > 2


def test_yarn_keeps_fast_pairs_slows_slow_ones_and_scales_the_tables():
    plain, scaled = frequencies(D, THETA, None), frequencies(D, THETA, YARN)
    assert scaled[0] == plain[0]
    assert scaled[-1] == plain[-1] / 4
    cos, _ = rotary_tables(D, THETA, 3, YARN)
    assert same_bits(cos[0], torch.full((D // 2,), 1.25))


def test_a_yarn_whose_limits_fall_together_divides_by_nothing():
    same = RopeScaling("yarn", 2.0, 64, beta_fast=1.0, beta_slow=1.0, attention_factor=1.0)
    untruncated = RopeScaling(
        "yarn", 2.0, 64, beta_fast=1.0, beta_slow=1.0, attention_factor=1.0, truncate=False
    )
    for scaling in (same, untruncated):
        assert torch.isfinite(frequencies(D, THETA, scaling)).all()


def test_a_model_turns_by_the_scaled_tables():
    model = tiny_model(rope_scaling=LLAMA3)
    cos, _ = rotary_tables(16, 500000.0, 64, LLAMA3)
    assert same_bits(model.model.rotary.cos, cos)
    assert not same_bits(model.model.rotary.cos, tiny_model().model.rotary.cos)


def test_the_scaling_is_part_of_the_configuration():
    config = tiny_config(rope_scaling=YARN)
    assert ModelConfig.from_dict(config.to_dict()) == config
    for values in (3, {}, {"kind": "linear"}, {"kind": "linear", "factor": 2.0, "x": 1}):
        with pytest.raises(ConfigurationError, match="rope_scaling must be an object"):
            ModelConfig.from_dict({**config.to_dict(), "rope_scaling": values})
    with pytest.raises(ConfigurationError, match="rope_scaling must be RopeScaling"):
        tiny_config(rope_scaling="linear")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kind": "longrope", "factor": 2.0}, "must be one of .* got 'longrope'"),
        ({"kind": "linear", "factor": 0.0}, r"factor must be in \(0, 1e\+09\), got 0.0"),
        ({"kind": "linear", "factor": float("nan")}, "factor must be in"),
        ({"kind": "linear", "factor": "2"}, "factor must be float, got '2'"),
        ({"kind": "linear", "factor": True}, "factor must be float, got True"),
        ({"kind": "linear", "factor": 2.0, "beta_fast": 1.0}, "'linear' has no beta_fast"),
        ({"kind": "llama3", "factor": 2.0}, "original_max_position_embeddings must be in"),
        (
            {"kind": "yarn", "factor": 2.0, "original_max_position_embeddings": 8.0},
            "original_max_position_embeddings must be int, got 8.0",
        ),
        ({"kind": "linear", "factor": 2.0, "truncate": 1}, "truncate must be a bool"),
        (
            {
                "kind": "llama3",
                "factor": 2.0,
                "original_max_position_embeddings": 8,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
            },
            "low_freq_factor < high_freq_factor",
        ),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(values, match):
    with pytest.raises(ConfigurationError, match=match):
        RopeScaling(**values)
