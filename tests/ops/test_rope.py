"""Rotation against numpy, by hand, with tables of every shape; its gradient turns back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import DeviceError, DTypeError, NotDifferentiableError, ShapeError
from bitnet_torch.ops import rope, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, STYLES, activations

BACKENDS = ["reference", "cpu"]


def turn(backend, *args):
    with use_backend(backend):
        return rope(*args)


def tables(*shape, seed=0):
    angles = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 500
    return angles.cos(), angles.sin()


def numpy_rope(x, cos, sin, dtype):
    half = x.shape[-1] // 2
    with np.errstate(all="ignore"):
        x1, x2 = x[..., :half], x[..., half:]
        y = np.concatenate((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)
    return torch.from_numpy(y).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_a_quarter_million_values_equal_numpy(backend, dtype, style):
    x = activations((2, 8, 128, 128), dtype, style, seed=3)
    cos, sin = tables(1, 1, 128, 64)
    want = numpy_rope(x.float().numpy(), cos.numpy(), sin.numpy(), dtype)
    assert same_bits(turn(backend, x, cos, sin), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_worked_pairs(backend):
    # Pairs (1, 3) and (2, 4); a quarter turn and none: (-3, 1) and (2, 4).
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    y = turn(backend, x, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert y.tolist() == [-3.0, 2.0, 1.0, 4.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_are_rounded_on_their_own(backend):
    # With a = 1 + 2^-12, a * a = 1 + 2^-11 + 2^-24 rounds to b = 1 + 2^-11. A fused multiply and
    # add would keep the 2^-24, and a * a - 1 * b would not be zero.
    a, b = 1 + 2.0**-12, 1 + 2.0**-11
    y = turn(backend, torch.tensor([a, 1.0]), torch.tensor([a]), torch.tensor([b]))
    assert y[0].item() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [0, 2, 14, 16, 18, 64, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_of_every_width(backend, d, dtype):
    x = torch.randn(3, 5, d).to(dtype)
    cos, sin = tables(5, d // 2)
    want = numpy_rope(x.float().numpy(), cos.numpy(), sin.numpy(), dtype)
    assert same_bits(turn(backend, x, cos, sin), want)


@settings(max_examples=150, deadline=None)
@given(
    lead=st.lists(st.integers(0, 4), max_size=4),
    dropped=st.integers(0, 4),
    stretched=st.lists(st.booleans(), min_size=4, max_size=4),
    half=st.integers(0, 20),
    transposed=st.booleans(),
)
def test_any_broadcast_of_the_tables_equals_the_reference(
    lead, dropped, stretched, half, transposed
):
    shape = [1 if s else n for n, s in zip(lead, stretched, strict=False)][dropped:]
    cos, sin = tables(*shape, half)
    x = torch.randn(*lead, 2 * half)
    if transposed and len(lead) > 1:  # heads as a view of the projection's output
        x = torch.randn(*reversed(lead), 2 * half).permute(*reversed(range(len(lead))), len(lead))
    assert same_bits(rope(x, cos, sin), turn("reference", x, cos, sin))
    assert rope(x, cos, sin).is_contiguous()


def test_tables_may_have_strides_of_their_own():
    cos, sin = tables(7, 10)
    x = torch.randn(2, 7, 10)
    want = rope(x, cos[:, ::2].contiguous(), sin[:, 5:].contiguous())
    assert same_bits(rope(x, cos[:, ::2], sin[:, 5:]), want)


def test_bits_depend_on_neither_batch_nor_threads(threads):
    x, (cos, sin) = torch.randn(4, 20, 256, 128).bfloat16(), tables(256, 64)
    want = turn("reference", x, cos, sin)
    for count in (1, 2, 5):
        threads(count)
        assert same_bits(rope(x, cos, sin), want)
    assert same_bits(rope(x[2:3, :, 9:10], cos[9:10], sin[9:10]), want[2:3, :, 9:10])


@pytest.mark.parametrize(
    ("dtype", "compiled"), [*((dtype, False) for dtype in DTYPES), (torch.bfloat16, True)]
)
def test_the_gradient_is_the_rotation_by_the_opposite_angle(dtype, compiled):
    fn = torch.compile(rope, fullgraph=True, backend="inductor") if compiled else rope
    x, grad = (torch.randn(2, 3, 5, 16).to(dtype) for _ in range(2))
    cos, sin = tables(5, 8)
    (dx,) = torch.autograd.grad(fn(x.requires_grad_(), cos, sin), x, grad)
    assert same_bits(dx, rope(grad, cos, -sin))
    # The transpose of the real map: two products and a sum, three roundings of their magnitudes.
    g1, g2 = grad.double().chunk(2, -1)
    exact = torch.cat((g1 * cos + g2 * sin, g2 * cos - g1 * sin), -1)
    size = torch.cat((g1.abs() * cos.abs() + g2.abs() * sin.abs(),) * 2, -1)
    size = torch.maximum(size, torch.cat((g2.abs() * cos.abs() + g1.abs() * sin.abs(),) * 2, -1))
    unit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    bound = 2 * 2.0**-24 * size + 1.001 * unit * exact.abs() + 2.0**-25 * (dtype == torch.float16)
    assert bool(((dx - exact).abs() <= bound).all())


def test_tables_refuse_a_gradient_by_name():
    cos, sin = tables(5, 8)
    y = rope(torch.randn(5, 16), cos.requires_grad_(), sin)
    with pytest.raises(NotDifferentiableError, match="tables cos and sin are data"):
        y.sum().backward()


def test_wrong_arguments_are_named_with_both_values():
    x, (cos, sin) = torch.ones(3, 5, 8), tables(5, 4)
    with pytest.raises(DTypeError, match=r"x must be float32 .* got .*float64"):
        rope(x.double(), cos, sin)
    with pytest.raises(DTypeError, match=r"cos must be float32, got .*bfloat16"):
        rope(x, cos.bfloat16(), sin)
    with pytest.raises(DTypeError, match=r"sin must be float32, got .*float16"):
        rope(x, cos, sin.half())
    with pytest.raises(ShapeError, match=r"even D, got \(3, 5, 7\)"):
        rope(x[..., :7], cos, sin)
    for shape in ((4, 4), (5, 8), (5, 1), (1, 3, 5, 4), ()):
        with pytest.raises(ShapeError, match=r"broadcast to \(..., D/2\) = \(3, 5, 4\), got"):
            rope(x, torch.ones(shape), torch.ones(shape))
    with pytest.raises(ShapeError, match=r"cos's shape \(5, 4\), got \(4,\)"):
        rope(x, cos, sin[0])
    with pytest.raises(DeviceError, match=r"cos on meta"):
        rope.impls["reference"](x, cos.to("meta"), sin)
