"""Each rule gives the codes and quanta of its source, for a matrix, a row and a group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError, DTypeError, QuantizationError, ShapeError
from bitnet_torch.ops import quantize_weight
from bitnet_torch.quant import (
    QUANTIZERS,
    SEQ2,
    Absmean,
    ExactL2,
    LearnableQuantizer,
    QuantizedWeight,
    make_quantizer,
)
from tests.bits import same_bits

PARTS = [("matrix", None), ("row", None), ("group", 8)]
TERNARY = [name for name in QUANTIZERS if make_quantizer(name).not_packable is None]


def made(name, w, granularity="matrix", group_size=None):
    quantizer = make_quantizer(name, granularity, group_size)
    quantizer.prepare(w)
    return quantizer


def weights(n=12, k=32, seed=0, dtype=torch.float32):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype) * 0.02


# Written by the sources' formulas, in float64 and with division, one row at a time.
def by_absmean(row):
    scale = row.abs().mean()
    return (row / scale).round().clamp(-1, 1), scale


def by_absmedian(row):
    scale = row.abs().sort().values[(len(row) - 1) // 2]
    return (row / scale).round().clamp(-1, 1), scale


def by_twn(row):
    kept = row.abs() > 0.7 * row.abs().mean()
    return row.sign() * kept, row.abs()[kept].mean()


def by_exact_l2(row):
    best = None
    for k in range(1, len(row) + 1):
        top = row.abs().topk(k).indices
        scale = row.abs()[top].mean()
        codes = torch.zeros_like(row).index_fill(0, top, 1) * row.sign()
        error = (row - codes * scale).square().sum()
        if best is None or error < best[0]:
            best = (error, codes, scale)
    return best[1:]


def by_alternating(row):
    scale, codes = row.abs().mean(), None
    for _ in range(64):
        codes = (row / scale).round().clamp(-1, 1)
        scale = (row @ codes) / (codes @ codes)
    return codes, scale


def by_asymmetric(row):
    offset = row.mean()
    scale = (row - offset).abs().mean()
    for _ in range(64):
        codes = ((row - offset) / scale).round().clamp(-1, 1)
        # Least squares on the columns (codes, 1).
        columns = torch.stack([codes, torch.ones_like(codes)], 1)
        scale, offset = torch.linalg.lstsq(columns, row[:, None]).solution[:, 0]
    return codes, scale


def by_binary(row):
    return torch.where(row > row.mean(), 1.0, -1.0), row.abs().mean()


def by_lsq(row):
    alpha = 2 * row.abs().mean()
    return (row / alpha).clamp(-1, 1).round(), alpha


def by_seq(row):
    alpha = row.abs().max()
    return (1.5 * (row / alpha).clamp(-0.99, 0.99)).round(), alpha / 1.5


def by_seq_2(row):
    alpha = row.abs().max()
    levels = (2 * (row / alpha).clamp(-0.99, 0.99) - 0.5).round() + 0.5
    return levels * 2, alpha / 4


SOURCES = {
    "absmean": by_absmean,
    "absmedian": by_absmedian,
    "twn": by_twn,
    "exact-l2": by_exact_l2,
    "alternating": by_alternating,
    "asymmetric": by_asymmetric,
    "binary": by_binary,
    "lsq": by_lsq,
    "seq": by_seq,
    "seq-2": by_seq_2,
}


@pytest.mark.parametrize("parts", PARTS, ids=[p[0] for p in PARTS])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_and_quanta_are_those_of_the_source(name, parts):
    w = weights()
    quantizer = made(name, w, *parts)
    got = quantizer.quantize(w)
    rows = quantizer.as_rows(w).double()
    want = [SOURCES[name](row) for row in rows]
    assert torch.equal(got.codes.double(), torch.stack([t for t, _ in want]).reshape(w.shape))
    scales = torch.stack([s for _, s in want]).reshape(got.scale.shape)
    # Fixed-point units of 2^-30 of the peak, then at most five roundings of 2^-24.
    torch.testing.assert_close(got.scale.double(), scales, rtol=8 * 2**-24, atol=2**-30)
    shapes = {"matrix": (), "row": (12,), "group": (12, 4)}
    assert tuple(got.scale.shape) == shapes[parts[0]]
    assert got.codes.dtype == torch.int8
    assert got.scale.dtype == torch.float32


def test_absmean_has_the_bits_of_the_op():
    w = weights(37, 53)
    for granularity in ("matrix", "row"):
        got = Absmean(granularity).quantize(w)
        codes, scale = quantize_weight(w, granularity)
        assert same_bits(got.codes, codes)
        assert same_bits(got.scale, scale)


@pytest.mark.parametrize("name", TERNARY)
def test_packable_codes_are_ternary_and_nothing_is_said_against_them(name):
    w = weights(5, 64)
    quantizer = made(name, w)
    assert quantizer.not_packable is None
    assert set(quantizer.quantize(w).codes.unique().tolist()) <= {-1, 0, 1}


def test_four_levels_say_why_they_cannot_be_packed():
    w = weights(5, 64)
    quantizer = made("seq-2", w)
    assert "-3, -1, 1 and 3" in quantizer.not_packable
    assert set(quantizer.quantize(w).codes.unique().tolist()) == {-3, -1, 1, 3}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(QUANTIZERS)),
    parts=st.sampled_from([("matrix", None), ("row", None), ("group", 3)]),
    n=st.integers(0, 9),
    thirds=st.integers(1, 9),
    power=st.integers(-8, 8),
    seed=st.integers(0, 2**32),
)
def test_scaling_by_a_power_of_two_scales_the_quanta_only(name, parts, n, thirds, power, seed):
    w = weights(n, thirds * 3, seed) * 50
    plain = made(name, w, *parts).quantize(w)
    scaled = made(name, w * 2.0**power, *parts).quantize(w * 2.0**power)
    large = plain.scale * min(1.0, 2.0**power) > 1e-4
    if bool(large.all()):
        assert same_bits(scaled.codes, plain.codes)
        assert same_bits(scaled.scale, plain.scale * 2.0**power)


@pytest.mark.parametrize("name", [n for n in QUANTIZERS if n not in ("binary", "seq-2")])
def test_negated_weights_have_negated_codes(name):
    w = weights(9, 40)
    plain, negated = made(name, w).quantize(w), made(name, -w).quantize(-w)
    assert torch.equal(plain.codes, -negated.codes)
    assert same_bits(plain.scale, negated.scale)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bits_depend_on_no_number_of_threads(name, threads):
    w = weights(300, 256)
    quantizer = made(name, w)
    threads(2)
    two = quantizer.quantize(w)
    threads(1)
    one = quantizer.quantize(w)
    assert same_bits(two.codes, one.codes)
    assert same_bits(two.scale, one.scale)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_zero_weights_have_the_smallest_quantum_and_finite_values(name):
    w = torch.zeros(3, 8)
    got = made(name, w, "row").quantize(w)
    assert bool((got.scale >= 2e-6).all())
    assert bool(got.dense().isfinite().all())
    if name not in ("binary", "seq-2"):
        assert not got.codes.any()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_half_precision_weights_count_as_their_float32_values(name):
    w = weights(6, 24, dtype=torch.bfloat16)
    quantizer = made(name, w, "row")
    half, full = quantizer.quantize(w), quantizer.quantize(w.float())
    assert same_bits(half.codes, full.codes)
    assert same_bits(half.scale, full.scale)


def test_no_ternary_row_is_nearer_than_exact_l2():
    w = weights(20, 48)
    exact = ExactL2("row").quantize(w).dense()
    for name in TERNARY:
        other = made(name, w, "row").quantize(w).dense()
        assert bool(((w - exact).square().sum(1) <= (w - other).square().sum(1) * 1.000001).all())


def test_exact_l2_keeps_the_smallest_of_equally_good_sets():
    # 4 alone removes 16; 4 with the four equal ones removes (4 + 4 * 1)^2 / 5 = 12.8.
    codes = ExactL2("row").quantize(torch.tensor([[1.0, -4.0, 1.0, 1.0, 1.0]])).codes
    assert codes.tolist() == [[0, -1, 0, 0, 0]]
    # 2 alone and all nine remove the same: 4 = (2 + 8 * 0.5)^2 / 9.
    tie = torch.tensor([[2.0] + [0.5] * 8])
    assert ExactL2("row").quantize(tie).codes.tolist() == [[1] + [0] * 8]


def test_an_offset_is_added_to_the_dense_form():
    codes = torch.tensor([[1, 0, -1, 1]], dtype=torch.int8)
    scale, offset = torch.tensor([[2.0, 3.0]]), torch.tensor([[0.5, -0.5]])
    assert QuantizedWeight(codes, scale, offset).dense().tolist() == [[2.5, 0.5, -3.5, 2.5]]


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"quantizer must be one of .*got 'median'"):
        make_quantizer("median")
    with pytest.raises(ConfigurationError, match=r"granularity must be one of .*got 'column'"):
        Absmean("column")
    with pytest.raises(ConfigurationError, match="granularity='group', group_size=None"):
        Absmean("group")
    with pytest.raises(ConfigurationError, match="granularity='row', group_size=4"):
        Absmean("row", 4)
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        Absmean("group", 0)
    with pytest.raises(ShapeError, match="group_size=5, K=32"):
        Absmean("group", 5).prepare(weights())
    with pytest.raises(ShapeError, match=r"w must be \(N, K\), got \(4,\)"):
        Absmean().quantize(torch.ones(4))
    with pytest.raises(DTypeError, match="w must be float32"):
        Absmean().quantize(torch.ones(4, 4).double())
    with pytest.raises(ConfigurationError, match="seq-2 has no alpha yet"):
        SEQ2().quantize(weights())


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(name, value):
    w = weights()
    quantizer = made(name, w)
    w[3, 5] = value
    with pytest.raises(QuantizationError, match=r"weight \[3, 5\] is"):
        quantizer.quantize(w)


def test_quantisers_show_what_shares_a_quantum():
    assert repr(Absmean("group", 16)) == "Absmean(group of 16)"
    assert repr(Absmean()) == "Absmean(matrix)"


@pytest.mark.parametrize("parts", PARTS, ids=[p[0] for p in PARTS])
@pytest.mark.parametrize("name", ["lsq", "seq", "seq-2"])
def test_learnt_steps_have_the_gradients_of_their_sources(name, parts):
    w = weights().double() * 50
    quantizer = made(name, w.float(), *parts)
    # Smaller than the start, so that some weights are clipped.
    quantizer.alpha.data = quantizer.alpha.data.double() * 0.6
    w.requires_grad_()
    upstream = torch.randn(w.shape, dtype=torch.float64)
    (quantizer.surrogate(w) * upstream).sum().backward()
    rows, grads = quantizer.as_rows(w.detach()), quantizer.as_rows(upstream)
    alphas = quantizer.alpha.detach().reshape(-1)
    clip = 1.0 if name == "lsq" else 0.99
    for row, grad, alpha, dw, dalpha in zip(
        rows,
        grads,
        alphas,
        quantizer.as_rows(w.grad),
        quantizer.alpha.grad.reshape(-1),
        strict=True,
    ):
        v = row / alpha
        clipped = v.abs() >= clip
        assert bool(clipped.any())
        level = {
            "lsq": v.clamp(-1, 1).round(),
            "seq": (1.5 * v.clamp(-0.99, 0.99)).round() / 1.5,
            "seq-2": ((2 * v.clamp(-0.99, 0.99) - 0.5).round() + 0.5) / 2,
        }[name]
        assert torch.equal(dw, torch.where(clipped, 0.0, grad))
        slope = torch.where(clipped, v.sign(), level - v)
        want = (grad * slope).sum() / len(row) ** 0.5
        torch.testing.assert_close(dalpha, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["lsq", "seq", "seq-2"])
def test_the_surrogate_has_the_values_of_the_codes(name):
    w = weights()
    quantizer = made(name, w, "row")
    got, want = quantizer.surrogate(w), quantizer.quantize(w).dense()
    # Four roundings of 2^-24 at most: quotient and product there, the quantum's two here.
    torch.testing.assert_close(got, want, rtol=4 * 2**-24, atol=0.0)


def test_preparing_again_keeps_what_was_learnt():
    quantizer = made("lsq", weights())
    alpha = quantizer.alpha
    quantizer.prepare(weights(seed=3))
    assert quantizer.alpha is alpha


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_mixed_weights_are_the_detach_formula(name, strength):
    w = weights().requires_grad_()
    quantizer = made(name, w.detach(), "row")
    mixed = quantizer.mixed(w, strength)
    dense = quantizer.quantize(w).dense()
    want = w + strength * (dense - w)
    torch.testing.assert_close(mixed, want, rtol=2**-21, atol=2**-30)
    upstream = torch.randn(w.shape)
    mixed.backward(upstream)
    if isinstance(quantizer, LearnableQuantizer):
        other = made(name, w.detach(), "row")
        twin = w.detach().clone().requires_grad_()
        (twin + strength * (other.surrogate(twin) - twin)).backward(upstream)
        torch.testing.assert_close(w.grad, twin.grad, rtol=2**-22, atol=1e-7)
        torch.testing.assert_close(quantizer.alpha.grad, other.alpha.grad)
    else:
        assert torch.equal(w.grad, upstream)
