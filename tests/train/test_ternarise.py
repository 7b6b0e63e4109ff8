import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import BitLinear
from bitnet_torch.ops import unpack_codes
from bitnet_torch.train.ternarise import METHODS, exact_l2_row, ternarised, twn_row
from tests.bits import same_bits


def error(weight, approximation):
    return (weight.double() - approximation.double()).square().sum().item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("columns", [1, 2, 7, 64])
def test_each_row_is_one_magnitude_times_codes(method, rows, columns):
    result = METHODS[method](torch.randn(rows, columns))
    for row in result:
        assert len(row.abs()[row != 0].unique()) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_stays_zero(method):
    assert not METHODS[method](torch.zeros(3, 4)).any()


def test_twn_has_the_value_worked_out_by_hand():
    # mean 2.5, threshold 1.75: 2, 3 and 4 stay, and their mean is 3.
    assert torch.equal(
        twn_row(torch.tensor([[1.0, -2.0, 3.0, -4.0]])), torch.tensor([[0.0, -3.0, 3.0, -3.0]])
    )


def test_exact_has_the_value_worked_out_by_hand():
    # Squared sums over counts: 4^2/1 = 16, 7^2/2 = 24.5, 8^2/3 = 21.3: two are kept.
    assert torch.equal(
        exact_l2_row(torch.tensor([[1.0, -4.0, 3.0]])), torch.tensor([[0.0, -3.5, 3.5]])
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=6))
def test_no_codes_and_scale_are_nearer_than_the_exact_ones(values):
    weight = torch.tensor([values], dtype=torch.float32)
    best = min(
        error(weight, torch.tensor([codes]) * scale)
        for codes in itertools.product((-1.0, 0.0, 1.0), repeat=len(values))
        for scale in [_best_scale(values, codes)]
    )
    # Float32 rounds the scale once: an error of 2^-24 of it per element, squared, is below this.
    assert error(weight, exact_l2_row(weight)) <= best + len(values) * 81 * 2**-22


def _best_scale(values, codes):
    used = sum(c * c for c in codes)
    return sum(v * c for v, c in zip(values, codes, strict=True)) / used if used else 0.0


def test_the_methods_stand_in_the_known_order_on_gaussian_weights():
    weight = torch.randn(64, 512)
    errors = [error(weight, METHODS[m](weight)) for m in ("exact L2 row", "TWN row", "absmean row")]
    assert errors == sorted(errors)
    assert torch.unique(errors[0] < torch.tensor(errors[1:])).tolist() == [True]


def test_a_model_is_ternarised_in_a_copy_and_its_head_stays():
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "lm_head": nn.Linear(8, 4)})
    before = model["body"].weight.detach().clone()
    copy = ternarised(model, "exact L2 row")
    assert same_bits(model["body"].weight.detach(), before)
    assert same_bits(copy["body"].weight.detach(), exact_l2_row(before))
    assert same_bits(copy["lm_head"].weight.detach(), model["lm_head"].weight.detach())


def test_absmean_of_a_matrix_is_what_bit_linear_would_use():
    layer = BitLinear(16, 8)
    packed = layer.packed()
    used = unpack_codes(packed.weight, 8) * packed.weight_scale
    assert same_bits(METHODS["absmean matrix"](layer.weight.detach()), used)


def test_an_unknown_method_and_a_model_without_layers_are_refused():
    with pytest.raises(ConfigurationError, match="got 'gptq'"):
        ternarised(nn.Linear(2, 2), "gptq")
    with pytest.raises(ConfigurationError, match=r"no nn\.Linear"):
        ternarised(nn.ReLU(), "TWN row")
