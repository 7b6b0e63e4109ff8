"""The screened head chooses as the float head does: 10,000 pairs, and the bound itself."""

import pytest
import torch

from bitnet_torch.errors import ConfigurationError, DTypeError, ShapeError
from bitnet_torch.ops import (
    float_linear,
    int8_linear,
    quantize_activation,
    screened_top_k,
    top_k,
    use_backend,
)
from bitnet_torch.ops.screened_top_k import LEAST, _token_bounds, intervals
from tests.bits import same_bits
from tests.cases import DTYPES
from tests.ops.heads import MAKERS, head_of, peaked, plain

# Cases of one call, and calls: each row of x with its weight is a case.
TOKENS, CALLS = 20, 504


def check(x, weight, k, head=None):
    """Assert the choice of the float head, bit for bit; return how many rows were re-scored."""
    values, ids, rescored = screened_top_k(x, weight, *(head or head_of(weight)), k)
    wanted = top_k(float_linear(x, weight, None, torch.float32), k)
    assert same_bits(values, wanted[0])
    assert same_bits(ids, wanted[1])
    assert bool(((rescored >= k) & (rescored <= len(weight))).all())
    return rescored


def test_ten_thousand_choices_are_the_float_heads():
    """Random and adversarial pairs, K odd and even, all dtypes, k from 1 to 64."""
    g = torch.Generator().manual_seed(0)
    cases = 0
    for call in range(CALLS):
        make = MAKERS[call % len(MAKERS)]
        k_size, n = (int(torch.randint(1, top, (), generator=g)) for top in (130, 400))
        k = min(n, 1 + call * 13 % 64)
        x, weight = make(TOKENS, n, k_size, g)
        check(x.to(DTYPES[call % 3]), weight.to(DTYPES[call // 3 % 3]), k)
        cases += TOKENS
    assert cases >= 10_000


@pytest.mark.parametrize("w_dtype", DTYPES)
def test_the_interval_holds_the_float_logit(w_dtype):
    """The bound is what is proven, so it is tested on every row, not only where it decides."""
    g = torch.Generator().manual_seed(1)
    for make in MAKERS:
        for k_size in (1, 7, 64, 515):
            x, weight = make(6, 50, k_size, g)
            weight = weight.to(w_dtype)
            h, h_scale, bounds = head_of(weight)
            x_q, x_scale = quantize_activation(x)
            s = int8_linear(x_q, x_scale, h, h_scale, torch.float32)
            low, high = intervals(s, *_token_bounds(x, x_q, x_scale), bounds)
            logits = float_linear(x, weight, None, torch.float32)
            inside = (low <= logits) & (logits <= high)
            # What is not finite may be anywhere, and its interval says so.
            assert bool((inside | logits.isnan() & (low == -torch.inf)).all()), make.__name__


def test_the_interval_is_nearly_reached():
    # x lies along the error of row 0: Cauchy-Schwarz is an equality, so a smaller bound is wrong.
    weight = torch.randn(4, 256)
    h, h_scale, bounds = head_of(weight)
    x = (weight[:1] - h[:1] * h_scale[:1, None]) * 1000
    x_q, x_scale = quantize_activation(x)
    s = int8_linear(x_q, x_scale, h, h_scale, torch.float32)
    a, _ = _token_bounds(x, x_q, x_scale)
    off = (float_linear(x, weight, None, torch.float32) - s)[0, 0].abs()
    assert off > 0.7 * a * bounds[0, 0]


def test_few_rows_are_scored_again_where_a_few_tokens_are_likely():
    g = torch.Generator().manual_seed(2)
    x, weight = peaked(8, 5000, 512, g)
    assert int(check(x, weight, 1).max()) < 50
    x, weight = plain(8, 5000, 512, g)
    assert float(check(x, weight, 1).double().mean()) < 0.1 * 5000


def test_a_row_of_x_that_is_not_finite_scores_everything_again():
    x, weight = torch.randn(4, 33), torch.randn(60, 33)
    x[1, 5], x[2, 0], x[3, 32] = float("nan"), float("inf"), 2.0**127
    rescored = check(x, weight, 3)
    assert rescored[1:].tolist() == [60, 60, 60]
    assert int(rescored[0]) < 60


def test_a_row_of_the_head_that_is_not_finite_is_scored_again_and_spoils_nothing():
    x, weight = torch.randn(4, 256), torch.randn(300, 256)
    weight[7, 3], weight[200, 0] = float("nan"), -float("inf")
    for k in (1, 2, 5):
        assert int(check(x, weight, k).max()) < 300


def test_a_zero_token_chooses_the_first_ids():
    x, weight = torch.zeros(1, 20), torch.randn(30, 20)
    values, ids, _ = screened_top_k(x, weight, *head_of(weight), 4)
    assert ids.tolist() == [[0, 1, 2, 3]]
    assert not values.any()


@pytest.mark.parametrize("isa_tokens", [1, 7, 8, 9, 17])
def test_blocks_of_tokens_and_threads_change_nothing(isa_tokens, threads):
    x, weight = torch.randn(isa_tokens, 100).bfloat16(), torch.randn(3000, 100).bfloat16()
    head = head_of(weight)
    threads(1)
    want = screened_top_k(x, weight, *head, 10)
    for count in (2, 5):
        threads(count)
        got = screened_top_k(x, weight, *head, 10)
        assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))
    alone = [screened_top_k(row, weight, *head, 10) for row in x]
    assert all(
        same_bits(torch.stack(g), w) for g, w in zip(zip(*alone, strict=True), want, strict=True)
    )


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_the_reference_counts_what_the_kernels_count(make):
    g = torch.Generator().manual_seed(3)
    for n, k_size, k in ((40, 33, 3), (7, 8, 7), (65, 129, 1)):
        x, weight = make(3, n, k_size, g)
        args = (x, weight, *head_of(weight), k)
        with use_backend("reference"):
            want = screened_top_k(*args)
        got = screened_top_k(*args)
        assert all(same_bits(g_, w) for g_, w in zip(got, want, strict=True))


def test_bounds_have_a_floor():
    weight = torch.zeros(3, 5)
    assert bool((head_of(weight)[2] == LEAST).all())


def test_wrong_arguments_are_named():
    x, weight = torch.randn(2, 4), torch.randn(3, 4)
    h, h_scale, bounds = head_of(weight)
    with pytest.raises(ShapeError, match=r"bounds must be \(2, N\) = \(2, 3\), got \(3, 2\)"):
        screened_top_k(x, weight, h, h_scale, bounds.T, 1)
    with pytest.raises(DTypeError, match=r"bounds must be float32, got torch.float64"):
        screened_top_k(x, weight, h, h_scale, bounds.double(), 1)
    with pytest.raises(ShapeError, match="h must have weight's 2 rows, got 3"):
        screened_top_k(x, weight[:2], h, h_scale, bounds, 1)
    with pytest.raises(ConfigurationError, match=r"k must be in \[0, 3\], got 4"):
        screened_top_k(x, weight, h, h_scale, bounds, 4)
