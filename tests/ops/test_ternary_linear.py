"""The integer product and its one rounding sequence, against numpy and by hand."""

import numpy as np
import pytest
import torch

from bitnet_torch.errors import DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import pack_codes, ternary_linear, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, codes

BACKENDS = ["reference", "cpu"]


def make(m, k, n, seed=0, rows=False):
    g = torch.Generator().manual_seed(seed)
    x_q = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=g)
    t = codes(n, k, seed + 1)
    w_scale = torch.rand((n,) if rows else (), generator=g) + 0.01
    return x_q, torch.rand(m, generator=g), t, w_scale


def numpy_linear(x_q, x_scale, t, w_scale, dtype, bias=None):
    """The contract in numpy int64 and float32; torch only rounds to 16 bits (proved apart)."""
    acc = x_q.numpy().astype(np.int64) @ t.numpy().astype(np.int64).T
    with np.errstate(over="ignore", invalid="ignore"):
        s = x_scale.numpy()[:, None] * w_scale.numpy()
        y = torch.from_numpy(acc.astype(np.float32) * s).to(dtype)
    if bias is not None:
        y = torch.from_numpy(y.to(torch.float32).numpy() + bias.to(torch.float32).numpy()).to(dtype)
    return y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("rows", [False, True], ids=["matrix", "row"])
def test_equals_numpy(backend, dtype, m, k, n, rows):
    x_q, x_scale, t, w_scale = make(m, k, n, rows=rows)
    bias = torch.randn(n).to(dtype)
    with use_backend(backend):
        y = ternary_linear(x_q, x_scale, pack_codes(t), w_scale, n, dtype)
        y_bias = ternary_linear(x_q, x_scale, pack_codes(t), w_scale, n, dtype, bias)
    assert same_bits(y, numpy_linear(x_q, x_scale, t, w_scale, dtype))
    assert same_bits(y_bias, numpy_linear(x_q, x_scale, t, w_scale, dtype, bias))


def test_rounding_to_bfloat16_is_to_nearest_even_on_a_million_floats():
    g = torch.Generator().manual_seed(7)
    raw = torch.randint(-(2**31), 2**31 - 1, (2**20,), generator=g, dtype=torch.int64)
    values = raw.to(torch.int32)
    values = values[~torch.isnan(values.view(torch.float32))]
    as_int = values.numpy().astype(np.uint32).astype(np.uint64)
    rounded = ((as_int + 0x7FFF + ((as_int >> 16) & 1)) >> 16).astype(np.uint16)
    want = torch.from_numpy(rounded.astype(np.int16)).view(torch.bfloat16)
    assert same_bits(values.view(torch.float32).to(torch.bfloat16), want)


def test_hand_worked_example():
    # t = [[-1, 0, 1, 1]]: (-1*1 + 0*2 + 1*3 + 1*4) = 6, times 0.5 * 2.
    packed = pack_codes(torch.tensor([[-1, 0, 1, 1]], dtype=torch.int8))
    x_q = torch.tensor([[1, 2, 3, 4]], dtype=torch.int8)
    y = ternary_linear(x_q, torch.tensor([0.5]), packed, torch.tensor(2.0), 1, torch.float32)
    assert y.tolist() == [[6.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("w", [-1, 1])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 13])
def test_the_largest_sums_are_exact(backend, x, w, m):
    k = 131072
    x_q = torch.full((m, k), x, dtype=torch.int8)
    packed = pack_codes(torch.full((9, k), w, dtype=torch.int8))
    with use_backend(backend):
        y = ternary_linear(x_q, torch.ones(m), packed, torch.tensor(1.0), 9, torch.float32)
    assert y.unique().tolist() == [float(x * w * k)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 2, 5, 40])
def test_a_zero_sum_is_plus_zero(backend, m):
    x_q = torch.zeros((m, 40), dtype=torch.int8)
    packed = pack_codes(torch.full((9, 40), -1, dtype=torch.int8))
    with use_backend(backend):
        y = ternary_linear(x_q, torch.ones(m), packed, torch.tensor(1.0), 9, torch.float32)
    assert same_bits(y, torch.zeros(m, 9))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_overflow_and_nan_scales_give_infinities_and_nans_not_numbers(backend, dtype):
    x_q, _, t, _ = make(3, 33, 10)
    x_scale = torch.tensor([1e38, float("nan"), 1.0])
    with use_backend(backend):
        y = ternary_linear(x_q, x_scale, pack_codes(t), torch.tensor(1e15), 10, dtype)
    assert same_bits(y, numpy_linear(x_q, x_scale, t, torch.tensor(1e15), dtype))
    assert torch.isnan(y[1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_do_not_depend_on_the_thread_count(backend, threads):
    x_q, x_scale, t, w_scale = make(33, 300, 129)
    packed = pack_codes(t)
    results = []
    for n in (1, 2, 3):
        threads(n)
        with use_backend(backend):
            results.append(ternary_linear(x_q, x_scale, packed, w_scale, 129, torch.bfloat16))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_wrong_arguments_are_named_with_both_values():
    x_q, x_scale, t, w_scale = make(2, 64, 8)
    packed, f32 = pack_codes(t), torch.float32
    with pytest.raises(ShapeError, match=r"packed must be .* \(2, 64\), got \(2, 63\)"):
        ternary_linear(x_q, x_scale, packed[:, 1:], w_scale, 8, f32)
    with pytest.raises(ShapeError, match=r"x_scale must have .* \(2,\), got \(3,\)"):
        ternary_linear(x_q, torch.ones(3), packed, w_scale, 8, f32)
    with pytest.raises(ShapeError, match=r"w_scale must be .* \(N,\) = \(8,\), got \(7,\)"):
        ternary_linear(x_q, x_scale, packed, torch.ones(7), 8, f32)
    with pytest.raises(ShapeError, match=r"bias must be \(N,\) = \(8,\), got \(1,\)"):
        ternary_linear(x_q, x_scale, packed, w_scale, 8, f32, torch.ones(1))
    with pytest.raises(DTypeError, match=r"x_q must be int8, got torch\.float32"):
        ternary_linear(x_q.float(), x_scale, packed, w_scale, 8, f32)
    with pytest.raises(DTypeError, match=r"dtype must be .*, got torch.float64"):
        ternary_linear(x_q, x_scale, packed, w_scale, 8, torch.float64)
    with pytest.raises(DTypeError, match="w_scale must be float32"):
        ternary_linear(x_q, x_scale, packed, w_scale.double(), 8, f32)
    with pytest.raises(DeviceError, match=r"one device, got x_q on cpu, .*packed on meta"):
        ternary_linear(x_q, x_scale, packed.to("meta"), w_scale, 8, f32)
