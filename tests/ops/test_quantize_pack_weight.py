"""Quantising and packing at once is its parts, and names what it cannot quantise."""

import pytest
import torch

from bitnet_torch.errors import ConfigurationError, DTypeError, QuantizationError, ShapeError
from bitnet_torch.ops import pack_codes, quantize_pack_weight, quantize_weight, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES, weights

BACKENDS = ["reference", "cpu"]


def parts(w, granularity):
    t, w_scale = quantize_weight(w, granularity)
    return pack_codes(t), w_scale


def same(got, want):
    return all(same_bits(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("granularity", ["matrix", "row"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_once_equals_the_parts(dtype, style, granularity):
    for n, k in sorted({(n, k) for _, k, n in SHAPES} | {(5, 2048), (6, 4099)}):
        w = weights(n, k, dtype, style, 3)
        assert same(quantize_pack_weight(w, granularity), parts(w, granularity))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_worked_matrix(backend):
    # The mean magnitude is 1, so t = 0, 1, 0, -1 (0.5 is not beyond 0.5): codes 1, 2, 1, 0.
    w = torch.tensor([[0.5], [1.5], [-0.25], [-1.75]])
    with use_backend(backend):
        packed, w_scale = quantize_pack_weight(w)
    assert w_scale.item() == 1.0
    assert packed.tolist() == [[0b00_01_10_01]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_rows_past_the_last_hold_code_1(backend, granularity):
    with use_backend(backend):
        packed, _ = quantize_pack_weight(torch.ones(5, 3), granularity)
    # R = 2: rows 0, 2, 4 and one past the end, then 1, 3 and two past it.
    assert packed.tolist() == [[0b01_10_10_10] * 3, [0b01_01_10_10] * 3]


@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_bits_do_not_depend_on_threads(granularity, threads):
    w = torch.randn(301, 2560)
    want = parts(w, granularity)
    for count in (1, 2, 5):
        threads(count)
        assert same(quantize_pack_weight(w, granularity), want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_a_weight_that_is_not_finite_is_named(backend, granularity):
    w = torch.randn(9, 40)
    w[3, 17] = float("inf")
    with use_backend(backend), pytest.raises(QuantizationError, match=r"weight \[3, 17\] is inf"):
        quantize_pack_weight(w, granularity)


def test_wrong_arguments_are_named_with_both_values():
    with pytest.raises(DTypeError, match=r"w must be float32 .* got .*int8"):
        quantize_pack_weight(torch.ones(2, 2, dtype=torch.int8))
    with pytest.raises(ShapeError, match=r"w must be \(N, K\), got \(8,\)"):
        quantize_pack_weight(torch.ones(8))
    with pytest.raises(ConfigurationError, match=r"one of \('matrix', 'row'\), got 'group'"):
        quantize_pack_weight(torch.ones(2, 2), "group")
