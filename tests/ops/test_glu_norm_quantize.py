"""The fused gate, sub-norm and quantiser is its parts, with a sub-norm and without."""

import pytest
import torch

from bitnet_torch.errors import ConfigurationError, DTypeError, ShapeError
from bitnet_torch.ops import glu, glu_norm_quantize, quantize_activation, rms_norm, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES, activations

BACKENDS = ["reference", "cpu"]


def parts(g, u, weight, eps, activation):
    h = glu(g, u, activation)
    return quantize_activation(h if weight is None else rms_norm(h, weight, eps))


def same(got, want):
    return all(same_bits(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_fused_equals_its_parts(dtype, style, activation):
    # On the CPU's kernels; the reference is its parts as it is written.
    for m, k in sorted({(m, k) for m, k, _ in SHAPES}):
        g, u = (activations((m, k), dtype, style, seed) for seed in (3, 4))
        for weight in (None, torch.randn(k), torch.randn(k).bfloat16()):
            arguments = (g, u, weight, 1e-5, activation)
            assert same(glu_norm_quantize(*arguments), parts(*arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_worked_rows(backend):
    g, u = torch.tensor([1.0, 2.0, -5.0]), torch.tensor([3.0, -1.0, 9.0])
    with use_backend(backend):
        # h = (3, -4, 0): codes 3 / 4 * 127 = 95.25 and -127.
        x_q, x_scale = glu_norm_quantize(g, u, None, 1e-5, "relu2")
        assert x_q.tolist() == [95, -127, 0]
        assert x_scale.item() == float(torch.tensor(4.0) / torch.tensor(127.0))
        # The norm of three has the mean square 25 / 3, and a gain moves the largest.
        x_q, _ = glu_norm_quantize(g, u, torch.tensor([2.0, 1.0, 1.0]), 1e-5, "relu2")
        assert x_q.tolist() == [127, -85, 0]  # -4 / 6 * 127 = -84.67


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_of_dead_neurons_is_a_row_of_zeros(backend):
    g, u = -torch.rand(2, 40), torch.full((2, 40), float("inf"))
    with use_backend(backend):
        for weight in (None, torch.ones(40)):
            x_q, x_scale = glu_norm_quantize(g, u, weight, 1e-5, "relu2")
            assert x_q.count_nonzero() == 0
            assert bool((x_scale > 0).all())


def test_bits_do_not_depend_on_threads(threads):
    g, u = torch.randn(100, 6912).bfloat16(), torch.randn(100, 6912).bfloat16()
    for weight in (None, torch.randn(6912).half()):
        want = glu_norm_quantize(g, u, weight, 1e-5, "silu")
        for count in (1, 2, 5):
            threads(count)
            assert same(glu_norm_quantize(g, u, weight, 1e-5, "silu"), want)


def test_the_longest_row_fits_the_buffer():
    g, u = torch.randn(2, 131072), torch.randn(2, 131072)
    arguments = (g, u, torch.randn(131072).half(), 1e-5, "relu2")
    assert same(glu_norm_quantize(*arguments), parts(*arguments))


def test_wrong_arguments_are_named_with_both_values():
    g = torch.ones(2, 8)
    with pytest.raises(ShapeError, match=r"shape of g, \(2, 8\), got \(2, 7\)"):
        glu_norm_quantize(g, g[:, :7], None, 1e-5, "relu2")
    with pytest.raises(ShapeError, match=r"weight must be \(K,\) = \(8,\), got \(9,\)"):
        glu_norm_quantize(g, g, torch.ones(9), 1e-5, "relu2")
    with pytest.raises(ShapeError, match="at least one dimension"):
        glu_norm_quantize(g[0, 0], g[0, 0], None, 1e-5, "relu2")
    with pytest.raises(ShapeError, match=r"K=131073 columns"):
        glu_norm_quantize(torch.ones(1, 131073), torch.ones(1, 131073), None, 1e-5, "relu2")
    with pytest.raises(DTypeError, match=r"weight must be float32 .* got .*int64"):
        glu_norm_quantize(g, g, torch.ones(8).long(), 1e-5, "relu2")
    with pytest.raises(ConfigurationError, match="at least 1e-12, got 0"):
        glu_norm_quantize(g, g, None, 0.0, "relu2")
    with pytest.raises(ConfigurationError, match="got 'gelu'"):
        glu_norm_quantize(g, g, None, 1e-5, "gelu")
