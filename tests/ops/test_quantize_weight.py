"""Weight ternarisation against exact arithmetic, by hand, and at its edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError, DTypeError, QuantizationError, ShapeError
from bitnet_torch.ops import quantize_weight, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, seeds, weights

BACKENDS = ["reference", "cpu"]


def exact_scale(w: np.ndarray) -> np.float32:
    """The contract with Python integers and float64 where nothing rounds twice."""
    magnitude = np.abs(w.astype(np.float32)).astype(np.float64).ravel()
    peak = float(magnitude.max(initial=0.0))
    least = np.float32(1e-5)
    if np.float32(peak) < least:
        return least
    p = 30 - math.frexp(peak)[1]
    total = sum(int(v) for v in np.rint(magnitude * 2.0**p))
    mean = np.float32(total) / np.float32(magnitude.size)
    return max(np.float32(math.ldexp(float(mean), -p)), least)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["normal", "saturated", "tiny", "mixed", "zeros", "ties"])
def test_scale_and_codes_equal_exact_arithmetic(backend, dtype, style):
    w = weights(256, 512, dtype, style, seed=5)
    with use_backend(backend):
        t, w_scale = quantize_weight(w)
    want = exact_scale(w.to(torch.float32).numpy())
    assert w_scale.shape == ()
    assert same_bits(w_scale, torch.tensor(want))
    ratio = w.to(torch.float32).numpy().astype(np.float64) / np.float64(want)
    assert same_bits(t, torch.from_numpy(np.clip(np.rint(ratio), -1, 1).astype(np.int8)))


def test_a_million_weights_equal_exact_arithmetic():
    w = torch.randn(1024, 1024) * 0.02
    _, w_scale = quantize_weight(w)
    assert same_bits(w_scale, torch.tensor(exact_scale(w.numpy())))


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_scales_are_the_scales_of_the_rows_alone(backend):
    w = torch.randn(9, 37) * torch.logspace(-6, 6, 9)[:, None]
    with use_backend(backend):
        t, w_scale = quantize_weight(w, "row")
        alone = [quantize_weight(w[i : i + 1]) for i in range(9)]
    assert w_scale.shape == (9,)
    assert same_bits(w_scale, torch.stack([s for _, s in alone]))
    assert same_bits(t, torch.cat([t for t, _ in alone]))


def test_hand_worked_matrix():
    # mean |W| = (1 + 0.25 + 0.5 + 0.25) / 4 = 0.5, threshold 0.25: a tie goes to zero.
    t, w_scale = quantize_weight(torch.tensor([[1.0, -0.25], [-0.5, 0.25]]))
    assert w_scale.item() == 0.5
    assert t.tolist() == [[1, 0], [-1, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 90), seed=seeds, power=st.integers(-10, 30))
def test_scale_ignores_order_and_sign_and_follows_powers_of_two(backend, n, k, seed, power):
    w = weights(n, k, torch.float32, "normal", seed)
    g = torch.Generator().manual_seed(seed)
    with use_backend(backend):
        t, w_scale = quantize_weight(w)
        shuffled = w[torch.randperm(n, generator=g)]
        _, permuted = quantize_weight(shuffled)
        negative, mirrored = quantize_weight(-w)
        scaled_t, scaled = quantize_weight(w * 2.0**power)
    assert same_bits(permuted, w_scale)
    assert same_bits(mirrored, w_scale)
    assert same_bits(negative, -t)
    if w_scale * 2.0**power > 1e-5 and w_scale > 1e-5:
        assert same_bits(scaled, w_scale * 2.0**power)
        assert same_bits(scaled_t, t)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_is_the_same_for_any_number_of_threads(backend, threads):
    w = torch.randn(517, 1031)
    results = []
    for n in (1, 2, 3):
        threads(n)
        with use_backend(backend):
            results.append(quantize_weight(w))
    assert all(same_bits(t, results[0][0]) and same_bits(s, results[0][1]) for t, s in results)


def test_about_31_percent_of_gaussian_weights_become_zero():
    # P(|z| < mean|z| / 2) = erf(sqrt(2 / pi) / 2 / sqrt(2)); six standard errors of a share.
    t, _ = quantize_weight(torch.randn(1000, 1000))
    expected = math.erf(math.sqrt(2 / math.pi) / 2 / math.sqrt(2))
    error = 6 * math.sqrt(expected * (1 - expected) / t.numel())
    assert abs((t == 0).double().mean().item() - expected) < error


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_a_weight_that_is_not_finite_is_named_by_its_index(backend, bad, granularity):
    w = torch.randn(5, 40)
    w[3, 33] = bad
    w[4, 2] = float("nan")
    with use_backend(backend), pytest.raises(QuantizationError, match=r"weight \[3, 33\] is") as e:
        quantize_weight(w, granularity)
    assert e.value.context["index"] == (3, 33)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_matrix_has_the_smallest_scale(backend, shape):
    with use_backend(backend):
        t, w_scale = quantize_weight(torch.empty(shape))
        _, rows = quantize_weight(torch.empty(shape), "row")
    assert t.shape == shape
    assert same_bits(w_scale, torch.tensor(1e-5))
    assert same_bits(rows, torch.full(shape[:1], 1e-5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [2.0**127, 3.4028234e38, 1e-38, 9.9e-6, 1.0001e-5])
def test_extreme_magnitudes_keep_the_contract(backend, value):
    w = torch.full((3, 5), value)
    with use_backend(backend):
        _, w_scale = quantize_weight(w)
    assert same_bits(w_scale, torch.tensor(exact_scale(w.numpy())))


def test_wrong_arguments_are_named():
    with pytest.raises(ShapeError, match=r"w must be \(N, K\), got \(3,\)"):
        quantize_weight(torch.ones(3))
    with pytest.raises(DTypeError, match="w must be float32 or bfloat16 or float16"):
        quantize_weight(torch.ones(3, 3, dtype=torch.float64))
    with pytest.raises(ConfigurationError, match="granularity must be one of"):
        quantize_weight(torch.ones(3, 3), "column")
