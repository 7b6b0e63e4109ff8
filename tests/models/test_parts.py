"""The small functions that the exact ops will replace: norm, rotary, GLU, attention."""

import math

import numpy as np
import pytest
import torch

from bitnet_torch.models.attention import attend, visible_keys
from bitnet_torch.models.glu import gated
from bitnet_torch.models.norm import rms_norm
from bitnet_torch.models.rotary import RotaryTables, rotary_tables, rotate
from tests.bits import same_bits

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("k", [1, 7, 64, 513])
def test_the_norm_is_within_its_rounding_of_float64(k):
    x, weight, eps = torch.randn(5, k), torch.randn(k), 1e-5
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt()
    got = rms_norm(x, weight, eps)
    # K additions of squares, then four more roundings, the square root halving its input's error.
    bound = (k + 8) * 2.0**-24
    assert bool(((got - weight * exact).abs() <= bound * (weight * exact).abs()).all())


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_norm_rounds_before_the_weight_and_returns_the_dtype_of_x(dtype):
    x, weight = torch.randn(3, 32).to(dtype), torch.randn(32)
    plain = rms_norm(x, torch.ones(32), 1e-5)
    assert plain.dtype == dtype
    assert same_bits(rms_norm(x, weight, 1e-5), (weight * plain.float()).to(dtype))


def test_the_tables_are_the_float64_angles_rounded_once():
    cos, sin = rotary_tables(8, 500000.0, 100)
    for p in (0, 1, 57, 99):
        for j in range(4):
            angle = p * 500000.0 ** (-2 * j / 8)
            # libm and torch may differ in the last bit of float64, far below float32's.
            assert abs(cos[p, j].item() - math.cos(angle)) <= 2.0**-24
            assert abs(sin[p, j].item() - math.sin(angle)) <= 2.0**-24
    assert cos.dtype == sin.dtype == torch.float32


@pytest.mark.parametrize("dtype", FLOATS)
def test_rotation_turns_half_split_pairs_with_every_product_rounded(dtype):
    x = torch.randn(2, 3, 5, 8).to(dtype)
    cos, sin = (table[:5][None, None] for table in rotary_tables(8, 100.0, 5))
    v, c, s = x.float().numpy(), cos.numpy(), sin.numpy()
    first = v[..., :4] * c - v[..., 4:] * s
    second = v[..., 4:] * c + v[..., :4] * s
    expected = torch.from_numpy(np.concatenate((first, second), -1)).to(dtype)
    assert same_bits(rotate(x, cos, sin), expected)


def test_tables_stay_float32_whatever_happens_to_the_module():
    tables = RotaryTables(8, 100.0, 16)
    cos, sin = tables.cos.clone(), tables.sin.clone()
    for moved in (tables.half(), tables.to(torch.bfloat16).float(), tables.double()):
        assert same_bits(moved.cos, cos)
        assert same_bits(moved.sin, sin)
    meta = RotaryTables(8, 100.0, 16, device="meta")
    assert meta.cos.is_meta
    assert same_bits(meta.to_empty(device="cpu").cos, cos)
    assert tables.state_dict() == {}


@pytest.mark.parametrize("dtype", FLOATS)
def test_relu2_rounds_after_every_product_and_a_dead_neuron_is_plus_zero(dtype):
    gate = torch.tensor([2.3, 1e-3, 0.0, -0.0, -1.0, -1.0, float("-inf")], dtype=dtype)
    up = torch.tensor([1.7, -3.0, -5.0, 5.0, -1.0, float("nan"), float("inf")], dtype=dtype)
    square = (gate.float() * gate.float()).to(dtype)
    alive = (square.float() * up.float()).to(dtype)[:2]
    assert same_bits(gated(gate, up, "relu2"), torch.cat((alive, torch.zeros(5, dtype=dtype))))


def test_a_gate_that_is_nan_stays_nan():
    assert bool(gated(torch.tensor([float("nan")]), torch.ones(1), "relu2").isnan().all())


def test_silu_is_the_gate_times_its_sigmoid_times_up():
    gate, up = torch.randn(100, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    expected = gate / (1 + (-gate).exp()) * up
    assert bool(((gated(gate, up, "silu") - expected).abs() <= 8 * 2.0**-53 * expected.abs()).all())


def test_visible_keys_are_real_and_not_later_and_always_include_oneself():
    real = torch.tensor([[False, True, True, True], [True, True, True, True]])
    assert visible_keys(real, 2)[:, 0].tolist() == [
        [[False, True, True, False], [False, True, True, True]],
        [[True, True, True, False], [True, True, True, True]],
    ]
    assert visible_keys(real[:1], 4)[0, 0, 0].tolist() == [True, False, False, False]


def test_grouped_attention_equals_attention_on_repeated_keys():
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    scores = q @ k.repeat_interleave(3, 1).mT / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    expected = scores.softmax(-1) @ v.repeat_interleave(3, 1)
    # Two sums of at most 8 products and one softmax of at most 5 terms, in either order.
    bound = 2 * (8 + 5 + 5) * 2.0**-24 * v.abs().max()
    visible = visible_keys(torch.ones(2, 5, dtype=torch.bool), 5)
    for mask in (None, visible):
        assert (attend(q, k, v, mask) - expected).abs().max() <= bound
