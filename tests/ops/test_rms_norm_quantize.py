"""The fused norm and quantiser is its parts, on every kind of number."""

import pytest
import torch

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.ops import quantize_activation, rms_norm, rms_norm_quantize, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES, activations

BACKENDS = ["reference", "cpu"]


def same(got, want):
    return all(same_bits(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_equals_its_parts(dtype, style):
    # On the CPU's kernels; the reference is its parts as it is written.
    for m, k in sorted({(m, k) for m, k, _ in SHAPES}):
        x, weight = activations((m, k), dtype, style, 3), torch.randn(k)
        want = quantize_activation(rms_norm(x, weight, 1e-5))
        assert same(rms_norm_quantize(x, weight, 1e-5), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_worked_row(backend):
    # ms + eps = 12.5 + 12.5, r = fl32(0.2): y = (0.6, -0.8), and 0.6 / 0.8 * 127 = 95.25.
    with use_backend(backend):
        x_q, x_scale = rms_norm_quantize(torch.tensor([3.0, -4.0]), torch.ones(2), 12.5)
    assert x_q.tolist() == [95, -127]
    assert x_scale.item() == pytest.approx(0.8 / 127, rel=3 * 2.0**-24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_between_the_parts_decides_codes(dtype):
    """Were it skipped, some code of this many would differ: the test above can fail."""
    x, weight = torch.randn(64, 512).to(dtype), torch.ones(512)
    unrounded = quantize_activation(rms_norm(x.float(), weight, 1e-5))[0]
    assert not torch.equal(rms_norm_quantize(x, weight, 1e-5)[0], unrounded)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_norm_has_no_codes_and_a_scale_of_nan(backend):
    x = torch.randn(3, 40)
    x[1, 5] = 2.0**63
    with use_backend(backend):
        x_q, x_scale = rms_norm_quantize(x, torch.ones(40), 1e-5)
    assert x_q[1].count_nonzero() == 0
    assert x_scale.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_that_is_nan_spoils_the_rows_and_not_the_process(backend):
    weight = torch.ones(40)
    weight[7] = float("nan")
    with use_backend(backend):
        x_q, x_scale = rms_norm_quantize(torch.randn(3, 40), weight, 1e-5)
    assert x_q.count_nonzero() == 0
    assert bool(x_scale.isnan().all())


def test_bits_do_not_depend_on_threads(threads):
    x, weight = torch.randn(300, 2560).bfloat16(), torch.randn(2560).bfloat16()
    want = rms_norm_quantize(x, weight, 1e-5)
    for count in (1, 2, 5):
        threads(count)
        assert same(rms_norm_quantize(x, weight, 1e-5), want)


def test_wrong_arguments_are_named_with_both_values():
    x = torch.ones(2, 8)
    with pytest.raises(ShapeError, match=r"weight must be \(K,\) = \(8,\), got \(9,\)"):
        rms_norm_quantize(x, torch.ones(9), 1e-5)
    with pytest.raises(ShapeError, match=r"K=131073 columns"):
        rms_norm_quantize(torch.zeros(1, 131073), torch.zeros(131073), 1e-5)
    with pytest.raises(ConfigurationError, match="at least 1e-12, got 0"):
        rms_norm_quantize(x, torch.ones(8), 0.0)
