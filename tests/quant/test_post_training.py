"""Rules that fit codes and scales to given weights, and the measure of how well they did."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ShapeError
from bitnet_torch.quant import (
    Absmean,
    Alternating,
    Asymmetric,
    ExactL2,
    QuantizedWeight,
    weight_error,
)

# Scales and offsets are rounded to float32 once; values below are at most 9.
ROUNDED = 81 * 2**-22


def squared(w, dense):
    return (w.double() - dense.double()).square().sum().item()


def test_alternating_has_the_value_worked_out_by_hand():
    # Mean 2.5, threshold 1.25: 2, 3, 4 stay with scale 3; threshold 1.5: the same ones.
    got = Alternating("row").quantize(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    assert got.codes.tolist() == [[0, -1, 1, -1]]
    assert got.scale.tolist() == [3.0]


def test_asymmetric_has_the_value_worked_out_by_hand():
    # Around the mean 4 stand -3, 0, 0, 3: codes -1, 0, 0, 1, exactly 3 times them.
    got = Asymmetric("row").quantize(torch.tensor([[1.0, 4.0, 4.0, 7.0]]))
    assert got.codes.tolist() == [[-1, 0, 0, 1]]
    assert (got.scale.tolist(), got.offset.tolist()) == ([3.0], [4.0])
    assert got.dense().tolist() == [[1.0, 4.0, 4.0, 7.0]]


ROW = st.lists(st.integers(-9, 9), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(ROW)
def test_no_codes_and_scale_are_nearer_than_the_exact_ones(values):
    w = torch.tensor([values], dtype=torch.float32)
    best = min(
        squared(w, torch.tensor([codes]) * _best_scale(values, codes))
        for codes in itertools.product((-1.0, 0.0, 1.0), repeat=len(values))
    )
    assert squared(w, ExactL2("row").quantize(w).dense()) <= best + len(values) * ROUNDED


def _best_scale(values, codes):
    used = sum(c * c for c in codes)
    return sum(v * c for v, c in zip(values, codes, strict=True)) / used if used else 0.0


@settings(deadline=None, max_examples=60)
@given(ROW, st.sampled_from([Alternating, Asymmetric]))
def test_neither_other_codes_nor_another_scale_alone_would_be_nearer(values, kind):
    w = torch.tensor([values], dtype=torch.float32)
    got = kind("row").quantize(w)
    error = squared(w, got.dense())
    for scale in (got.scale * 0.99, got.scale * 1.01):
        changed = QuantizedWeight(got.codes, scale, got.offset).dense()
        assert error <= squared(w, changed) + len(values) * ROUNDED
    for position, code in itertools.product(range(len(values)), (-1, 0, 1)):
        codes = got.codes.clone()
        codes[0, position] = code
        changed = QuantizedWeight(codes, got.scale, got.offset).dense()
        assert error <= squared(w, changed) + len(values) * ROUNDED


def test_the_rules_stand_in_the_known_order_on_gaussian_weights():
    w = torch.randn(64, 512)
    rules = (Asymmetric, ExactL2, Alternating, Absmean)
    errors = [squared(w, kind("row").quantize(w).dense()) / squared(w, w * 0) for kind in rules]
    assert errors == sorted(errors)
    # 0.190 and 0.262 are the figures of Gaussian weights, over 64 rows of 512 to 2 %.
    assert abs(errors[1] - 0.190) < 0.004
    assert abs(errors[3] - 0.262) < 0.004


def test_an_offset_takes_up_what_all_weights_share():
    w = torch.randn(16, 256)
    plain, shifted = (squared(x, Asymmetric("row").quantize(x).dense()) for x in (w, w + 3))
    # Only rounding of w + 3 tells them apart: half a unit of 4 on each of 4096 weights.
    assert abs(plain - shifted) <= 4096 * 8 * 2**-22
    assert squared(w + 3, ExactL2("row").quantize(w + 3).dense()) > 2 * shifted


def test_equal_weights_have_no_slope_and_their_value_is_kept():
    got = Asymmetric("row").quantize(torch.full((2, 5), 3.0))
    assert torch.equal(got.dense(), torch.full((2, 5), 3.0))


def test_an_offset_says_why_it_cannot_be_packed():
    assert "offset" in Asymmetric().not_packable
    assert Alternating().not_packable is None


def test_the_error_has_the_values_worked_out_by_hand():
    # |W| = 5, |W - Q| = 3, <W, Q> = 16, |Q| = 4.
    error = weight_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]]))
    assert error.relative_error == pytest.approx(0.6, rel=2**-50)
    assert error.cosine == pytest.approx(0.8, rel=2**-50)
    assert error.sqnr_db == pytest.approx(4.436974992327127, rel=2**-48)


def test_what_cannot_be_known_of_an_error_is_none():
    zero, one = torch.zeros(2, 2), torch.ones(2, 2)
    nothing = weight_error(zero, one)
    assert (nothing.relative_error, nothing.cosine, nothing.sqnr_db) == (None, None, None)
    same = weight_error(one, one)
    assert (same.relative_error, same.sqnr_db) == (0.0, None)
    assert weight_error(one, zero).cosine is None
    with pytest.raises(ShapeError, match=r"got \(2, 2\) and \(2, 3\)"):
        weight_error(one, torch.ones(2, 3))
