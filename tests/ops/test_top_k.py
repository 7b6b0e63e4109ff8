import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError, DTypeError, ShapeError
from bitnet_torch.ops import top_k
from tests.bits import same_bits

NAN, INF = float("nan"), float("inf")
VALUES = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 2.0**-149, 3e38, 0.5, -3e38])


def by_hand(values, k):
    nan_first = [i for i in range(len(values)) if math.isnan(values[i])]
    rest = [i for i in range(len(values)) if not math.isnan(values[i])]
    return (nan_first + sorted(rest, key=lambda i: -values[i]))[:k]


@settings(max_examples=300, deadline=None)
@given(values=st.lists(VALUES, max_size=80), share=st.floats(0, 1))
def test_the_order_is_a_stable_sorts(values, share):
    k, x = round(share * len(values)), torch.tensor(values, dtype=torch.float32)
    for run in (top_k, top_k.impls["reference"]):
        chosen, ids = run(x, k)
        assert ids.tolist() == by_hand(values, k)
        assert same_bits(chosen, x[ids])


def test_equal_zeros_keep_their_signs_and_their_order():
    values, ids = top_k(torch.tensor([[-1.0, -0.0, 0.0, -0.0]]), 3)
    assert ids.tolist() == [[1, 2, 3]]
    assert same_bits(values, torch.tensor([[-0.0, 0.0, -0.0]]))


@pytest.mark.parametrize("k", [1, 2, 31, 64, 1000, 4999, 5000])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal", "few", "nan"])
def test_long_rows_of_any_order(k, order):
    x = torch.randn(3, 5000)
    if order in ("rising", "falling"):
        x = x.sort(-1, descending=order == "falling").values
    if order in ("equal", "few"):
        x = torch.randint(0, 1 if order == "equal" else 4, (3, 5000)).float()
    if order == "nan":
        x[:, ::7] = NAN
    got, want = top_k(x, k), top_k.impls["reference"](x, k)
    assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("place", [0, 1, 7, 8, 31, 32, 33, 4095, 4096])
def test_the_largest_is_found_wherever_it_is(place):
    x = torch.full((4097,), -INF)
    x[place] = -3e38
    assert top_k(x, 1)[1].tolist() == [place]
    x[place] = NAN
    assert top_k(x, 1)[1].tolist() == [place]


def test_leading_dimensions_are_kept():
    x = torch.randn(2, 3, 10)
    values, ids = top_k(x, 4)
    assert values.shape == ids.shape == (2, 3, 4)
    assert same_bits(values[1, 2], top_k(x[1, 2], 4)[0])


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigurationError, match=r"k must be in \[0, 5\], got 6"):
        top_k(torch.zeros(2, 5), 6)
    with pytest.raises(ConfigurationError, match=r"k must be in \[0, 5\], got -1"):
        top_k(torch.zeros(2, 5), -1)
    with pytest.raises(DTypeError, match=r"logits must be float32, got torch.bfloat16"):
        top_k(torch.zeros(2, 5).bfloat16(), 1)
    with pytest.raises(ShapeError, match="at least one dimension"):
        top_k(torch.tensor(1.0), 0)
