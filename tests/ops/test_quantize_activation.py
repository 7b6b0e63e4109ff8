"""Activation quantisation against numpy, by hand, and at its edges."""

import numpy as np
import pytest
import torch

from bitnet_torch.errors import DTypeError, ShapeError
from bitnet_torch.ops import quantize_activation, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, STYLES, activations


def numpy_quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The contract, step by step, in numpy float32: an independent IEEE implementation."""
    one, top = np.float32(1), np.float32(127)
    amax = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    inv = (one / amax) * top
    x_q = np.clip(np.rint(x * inv), -128, 127).astype(np.int8)
    return x_q, (amax / top)[..., 0]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", [s for s in STYLES if s != "broken"])
def test_a_million_values_equal_numpy(backend, dtype, style):
    x = activations((2**20 // 512, 512), dtype, style, seed=3)
    with use_backend(backend):
        x_q, x_scale = quantize_activation(x)
    want_q, want_scale = numpy_quantize(x.to(torch.float32).numpy())
    assert same_bits(x_q, torch.from_numpy(want_q))
    assert same_bits(x_scale, torch.from_numpy(want_scale))


def test_hand_worked_row():
    # amax = 2, inv = fl32(0.5 * 127) = 63.5: 2 -> 127, -1 -> -63.5 -> -64 (tie to even),
    # 1 -> 63.5 -> 64, 0.25 -> 15.875 -> 16.
    x_q, x_scale = quantize_activation(torch.tensor([2.0, -1.0, 1.0, 0.25]))
    assert x_q.tolist() == [127, -64, 64, 16]
    assert x_scale.item() == float(np.float32(2) / np.float32(127))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), 2.0**126 * 1.0000001, -(2.0**127)]
)
def test_a_row_that_cannot_be_quantised_is_nan_and_leaves_the_others_alone(backend, bad):
    x = torch.randn(3, 40)
    want_q, want_scale = quantize_activation(x)
    x[1, 17] = bad
    with use_backend(backend):
        x_q, x_scale = quantize_activation(x)
    assert x_q[1].count_nonzero() == 0
    assert torch.isnan(x_scale[1])
    assert same_bits(x_q[::2], want_q[::2])
    assert same_bits(x_scale[::2], want_scale[::2])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_two_to_the_126_is_still_quantised(backend):
    with use_backend(backend):
        x_q, x_scale = quantize_activation(torch.tensor([2.0**126, -(2.0**125)]))
    assert x_q.tolist() == [127, -64]
    assert x_scale.item() == float(np.float32(2.0**126) / np.float32(127))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_zero_row_has_the_smallest_scale_and_zero_codes(backend):
    with use_backend(backend):
        x_q, x_scale = quantize_activation(torch.zeros(2, 9))
    assert x_q.count_nonzero() == 0
    assert x_scale.tolist() == [float(np.float32(1e-5) / np.float32(127))] * 2


def test_a_row_of_no_elements_is_a_row_of_zeros():
    x_q, x_scale = quantize_activation(torch.empty(3, 0))
    assert x_q.shape == (3, 0)
    assert x_scale.tolist() == [float(np.float32(1e-5) / np.float32(127))] * 3


def test_an_integer_tensor_is_refused_by_name():
    with pytest.raises(DTypeError, match=r"x must be float32 or bfloat16 or float16, got .*int32"):
        quantize_activation(torch.ones(2, 2, dtype=torch.int32))


def test_a_scalar_is_refused():
    with pytest.raises(ShapeError, match="at least one dimension"):
        quantize_activation(torch.tensor(1.0))


def test_a_row_longer_than_the_exact_sum_allows_is_refused_with_both_sizes():
    with pytest.raises(ShapeError, match=r"K=131073 columns; sums are exact up to K=131072"):
        quantize_activation(torch.zeros(1, 131073))
