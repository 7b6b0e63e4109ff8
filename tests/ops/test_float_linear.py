import ctypes
import ctypes.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bitnet_torch.errors import DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import float_linear
from bitnet_torch.ops._exact import fma
from tests.bits import same_bits
from tests.cases import DTYPES
from tests.float_bound import exact_product, sum_error


def reference(*args):
    return float_linear.impls["reference"](*args)


def test_a_product_by_hand():
    x = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, -2.0]])
    want = torch.tensor([[6.0, -4.0], [-0.5, 3.0]])
    assert same_bits(float_linear(x, weight), want)
    bias = torch.tensor([0.25, -1.0])
    assert same_bits(float_linear(x, weight, bias), want + bias)


def test_the_lanes_are_every_eighth_column_and_the_tree_is_the_one_written():
    # Powers far apart: each addition rounds the smaller one away, so the order shows.
    big, one = 2.0**24, 1.0
    x = torch.zeros(9)
    x[0], x[4], x[8] = big, one, one
    weight = torch.ones(1, 9)
    # l_0 = big + 1 -> big (columns 0 and 8), t_0 = big + 1 -> big; not big + 2.
    assert float_linear(x, weight).item() == big
    x[4], x[1] = 0.0, -big
    # l_0 = big, u = big, minus big: both ones are gone.
    assert float_linear(x, weight).item() == 0.0
    x = torch.tensor([big, 0, one, 0, 0, 0, one, 0])
    # t_2 = 1 + 1 before it meets t_0.
    assert float_linear(x, torch.ones(1, 8)).item() == big + 2


@pytest.fixture(scope="module")
def c_fma():
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("this system has no separate libm")
    function = ctypes.CDLL(name).fmaf
    function.argtypes, function.restype = [ctypes.c_float] * 3, ctypes.c_float
    return function


_BITS = st.integers(0, 2**32 - 1)


@settings(max_examples=400, deadline=None)
@given(
    triples=st.lists(st.tuples(_BITS, _BITS, _BITS), min_size=1, max_size=20), near=st.booleans()
)
def test_the_references_fma_is_that_of_c(c_fma, triples, near):
    a, b, c = torch.tensor(triples, dtype=torch.int64).to(torch.int32).view(torch.float32).unbind(1)
    if near:  # an addend near half an ulp of the product, where rounding twice goes wrong
        c = (a * b) * 2.0**-24 * (1 + torch.sign(c.nan_to_num()) * 2.0**-23)
    want = [c_fma(*values) for values in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert same_bits(fma(a, b, c), torch.tensor(want))


def test_a_sum_is_not_rounded_twice():
    # 2^46 + 1 on top of 2^70: above half an ulp by 1, which float64 drops, leaving a tie.
    a, b, c = torch.tensor(8384513.0), torch.tensor(8392705.0), torch.tensor(2.0**70)
    assert int(a) * int(b) == 2**46 + 1
    assert (a.double() * b.double() + c.double()).to(torch.float32).item() == 2.0**70
    for sign in (1, -1):
        assert fma(sign * a, b, sign * c).item() == sign * (2.0**70 + 2.0**47)
    x, weight = torch.zeros(1, 16), torch.zeros(1, 16)
    x[0, 0], x[0, 8], weight[0, 0], weight[0, 8] = c, a, 1.0, b
    assert float_linear(x, weight).item() == 2.0**70 + 2.0**47


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_within_the_bound_of_the_real_ones(dtype):
    for m, n, k in ((3, 5, 1000), (20, 7, 33), (1, 9, 4096)):
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        y = float_linear(x, weight, None, torch.float32)
        assert bool(((y.double() - exact_product(x, weight)).abs() <= sum_error(x, weight)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_output_is_rounded_once_to_the_dtype_that_is_asked_for(dtype):
    x, weight, bias = torch.randn(5, 70).bfloat16(), torch.randn(6, 70), torch.randn(6)
    wide = float_linear(x, weight, bias, torch.float32)
    assert same_bits(float_linear(x, weight, bias, dtype), wide.to(dtype))
    assert float_linear(x, weight).dtype == torch.bfloat16


def test_a_token_has_its_bits_in_any_company():
    x, weight, bias = torch.randn(300, 333), torch.randn(70, 333).bfloat16(), torch.randn(70)
    together = float_linear(x, weight, bias)
    for m in (1, 2, 3, 5, 12, 13, 96, 97):
        assert same_bits(float_linear(x[:m], weight, bias), together[:m])
        assert same_bits(float_linear(x[300 - m :], weight, bias), together[300 - m :])
    for n in (1, 3, 4, 33):
        assert same_bits(float_linear(x[:50], weight[:n], bias[:n]), together[:50, :n])
    # What F.linear does not promise, and does not do here or elsewhere for some shapes.
    assert F.linear(x, weight.float(), bias).shape == together.shape


def test_leading_dimensions_are_kept():
    x, weight = torch.randn(2, 3, 20), torch.randn(4, 20)
    assert same_bits(float_linear(x, weight), float_linear(x.view(6, 20), weight).view(2, 3, 4))
    assert float_linear(x[0, 0], weight).shape == (4,)


def test_what_is_not_finite_stays_where_it_is():
    x, weight = torch.randn(4, 20), torch.randn(5, 20)
    x[1, 3], weight[2, 7], weight[4, 19] = float("nan"), float("inf"), float("nan")
    y = float_linear(x, weight)
    assert y.isnan().tolist() == [[i == 1 or n == 4 for n in range(5)] for i in range(4)]
    assert y[[0, 2, 3], 2].isinf().all()
    assert same_bits(y, reference(x, weight))


def test_subnormals_and_negative_zeros_have_the_references_bits():
    x = torch.randn(6, 21) * 2.0**-75
    weight = torch.randn(9, 21) * 2.0**-74
    x[0], weight[0] = -0.0, -0.0
    y = float_linear(x, weight)
    assert bool(((y != 0) & (y.abs() < 2.0**-126)).any())
    assert same_bits(y, reference(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_the_plain_products(dtype):
    x, weight = torch.randn(3, 4, 15).to(dtype), torch.randn(6, 15).to(dtype)
    bias, g = torch.randn(6).to(dtype), torch.randn(3, 4, 6).to(dtype)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    dx, dweight, dbias = torch.autograd.grad(float_linear(*leaves), leaves, g)
    assert same_bits(dx, (g.reshape(12, 6) @ weight.detach()).view(3, 4, 15))
    assert same_bits(dweight, g.reshape(12, 6).T @ x.detach().view(12, 15))
    assert same_bits(dbias, g.float().sum((0, 1)).to(dtype))


def test_a_float32_gradient_of_narrow_weights_is_computed_as_narrow_ones_are():
    x = torch.randn(5, 8).bfloat16().requires_grad_()
    weight = torch.randn(3, 8).bfloat16()
    float_linear(x, weight, None, torch.float32).square().sum().backward()
    g = 2 * float_linear(x.detach(), weight, None, torch.float32)
    assert same_bits(x.grad, g.bfloat16() @ weight)


def test_backward_inside_autocast_keeps_its_dtype():
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(3, 8)
    y = float_linear(x, weight).sum()
    with torch.autocast("cpu", torch.bfloat16):
        y.backward()
    assert same_bits(x.grad, torch.ones(5, 3) @ weight)


def test_wrong_arguments_are_named():
    x, weight = torch.randn(2, 4), torch.randn(3, 4)
    with pytest.raises(DTypeError, match=r"x must be float32 or .*, got .*float64"):
        float_linear(x.double(), weight)
    with pytest.raises(DTypeError, match=r"weight must be .*, got torch.int8"):
        float_linear(x, weight.to(torch.int8))
    with pytest.raises(DTypeError, match=r"dtype must be .*, got torch.int32"):
        float_linear(x, weight, None, torch.int32)
    with pytest.raises(ShapeError, match=r"weight must be \(N, K\), got \(4,\)"):
        float_linear(x, weight[0])
    with pytest.raises(ShapeError, match=r"x must be \(..., K\) = \(..., 4\), got \(2, 3\)"):
        float_linear(x[:, :3], weight)
    with pytest.raises(ShapeError, match=r"x must be \(..., K\) = \(..., 4\), got \(\)"):
        float_linear(torch.tensor(1.0), weight)
    with pytest.raises(ShapeError, match=r"bias must be \(N,\) = \(3,\), got \(2,\)"):
        float_linear(x, weight, torch.zeros(2))
    with pytest.raises(DeviceError, match="x on cpu, weight on meta"):
        float_linear(x, weight.to("meta"))


def test_the_bound_is_the_textbooks():
    # Higham 2002, (3.4): a dot product of n terms in any order has error at most gamma_n |x||y|.
    x, weight = torch.ones(1, 100), torch.ones(1, 100)
    assert math.isclose(sum_error(x, weight).item(), 100 * 108 * 2.0**-24, rel_tol=1e-4)
