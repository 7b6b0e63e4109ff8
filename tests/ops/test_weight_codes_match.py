"""Codes match their weight, and nothing else does."""

import pytest
import torch

from bitnet_torch.errors import DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import quantize_pack_weight, use_backend, weight_codes_match
from tests.cases import DTYPES, SHAPES, STYLES, weights

BACKENDS = ["reference", "cpu"]
GRANULARITIES = ["matrix", "row"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_quantising_made_matches(dtype, style, granularity):
    for n, k in sorted({(n, k) for _, k, n in SHAPES} | {(5, 2048), (6, 4099)}):
        w = weights(n, k, dtype, style, 3)
        assert bool(weight_codes_match(w, *quantize_pack_weight(w, granularity), granularity))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_one_code_that_differs_anywhere_is_found(backend, granularity):
    w = torch.randn(9, 300)
    packed, w_scale = quantize_pack_weight(w, granularity)
    for at in ((0, 0), (1, 150), (2, 299)):
        for field in range(4):
            other = packed.clone()
            # Also past row 9, where a code belongs to no weight.
            other[at] ^= 1 << 2 * field
            with use_backend(backend):
                assert not bool(weight_codes_match(w, other, w_scale, granularity))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_scale_that_differs_by_one_bit_is_found(backend, granularity):
    w = torch.randn(9, 300)
    packed, w_scale = quantize_pack_weight(w, granularity)
    for way in (0.0, float("inf")):
        other = w_scale.clone().reshape(-1)
        other[-1] = torch.nextafter(other[-1], torch.tensor(way))
        with use_backend(backend):
            assert not bool(
                weight_codes_match(w, packed, other.reshape(w_scale.shape), granularity)
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_weight_that_changes_no_code_but_the_scale_is_found(backend, granularity):
    w = torch.randn(64, 700)
    codes = quantize_pack_weight(w, granularity)
    w[63, 699] = 2 * w.abs().max()  # the last one, in another octave than the first ones
    w[62, 0] *= 1.5
    with use_backend(backend):
        assert not bool(weight_codes_match(w, *codes, granularity))
        assert bool(weight_codes_match(w, *quantize_pack_weight(w, granularity), granularity))


@pytest.mark.parametrize("late", [0.25, 4.0, 2.0**40, 2.0**-30])
def test_a_largest_weight_that_comes_late_is_summed_under_its_own_binary_point(late):
    """The kernel guesses the binary point from the first 65536 weights."""
    w = torch.randn(40, 4096) * 2.0**-20
    w[39, 4000] = late
    want = quantize_pack_weight.impls["reference"](w)
    got = quantize_pack_weight(w)
    assert got[1].item() == want[1].item()
    assert torch.equal(got[0], want[0])
    assert bool(weight_codes_match(w, *want))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_matches_nothing(backend, bad):
    w = torch.randn(8, 40)
    for granularity in GRANULARITIES:
        codes = quantize_pack_weight(w, granularity)
        spoiled = w.clone()
        spoiled[7, 39] = bad
        with use_backend(backend):
            assert not bool(weight_codes_match(spoiled, *codes, granularity))


def test_wrong_arguments_are_named_with_both_values():
    w = torch.ones(8, 5)
    packed, w_scale = quantize_pack_weight(w)
    with pytest.raises(ShapeError, match=r"w_scale must be \(8,\) for one scale per row, got \(\)"):
        weight_codes_match(w, packed, w_scale, "row")
    with pytest.raises(ShapeError, match=r"packed must be \(ceil\(N/4\), K\) = \(2, 5\)"):
        weight_codes_match(w, packed[:1], w_scale)
    with pytest.raises(DTypeError, match="w_scale must be float32"):
        weight_codes_match(w, packed, w_scale.double())
    with pytest.raises(DeviceError, match="w on cpu, packed on meta"):
        weight_codes_match.impls["reference"](w, packed.to("meta"), w_scale)
