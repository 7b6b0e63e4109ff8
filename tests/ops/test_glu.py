"""The gate against numpy, by hand, at its edges; its gradients against float64 autograd."""

import numpy as np
import pytest
import torch

from bitnet_torch.errors import ConfigurationError, DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import glu, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, STYLES, activations

BACKENDS = ["reference", "cpu"]
# Of one rounding to the dtype: relative, and absolute among its subnormals.
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
HALF_STEP = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}
NAN, INF = float("nan"), float("inf")


def gate(backend, *args):
    with use_backend(backend):
        return glu(*args)


def numpy_relu2(g, u, dtype):
    """The contract, step by step, in numpy; only the rounding to ``dtype`` is PyTorch's."""
    to_dtype = lambda a: torch.from_numpy(a).to(dtype).to(torch.float32).numpy()  # noqa: E731
    with np.errstate(all="ignore"):
        h = to_dtype(to_dtype(g * g) * u)
    h = np.where(g > 0, h, np.float32(0))
    return torch.from_numpy(np.where(np.isnan(g), np.float32(NAN), h)).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_a_quarter_million_gates_of_relu2_equal_numpy(backend, dtype, style):
    g, u = (activations((512, 513), dtype, style, seed) for seed in (1, 2))
    want = numpy_relu2(g.float().numpy(), u.float().numpy(), dtype)
    assert same_bits(gate(backend, g, u, "relu2"), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_worked_gates(backend):
    g, u = torch.tensor([3.0, 0.5, -2.0, 0.0]), torch.tensor([2.0, -8.0, 5.0, 5.0])
    assert gate(backend, g, u, "relu2").tolist() == [18.0, -2.0, 0.0, 0.0]
    # (1 + 2^-7)^2 = 1 + 2^-6 + 2^-14 is 1 + 2^-6 in bfloat16; times 1 + 2^-7 it is
    # 1 + 3 * 2^-7 + 2^-13, which is 1 + 3 * 2^-7.
    one = torch.tensor([1 + 2.0**-7], dtype=torch.bfloat16)
    assert gate(backend, one, one, "relu2").item() == 1 + 3 * 2.0**-7
    assert gate(backend, torch.zeros(1), torch.ones(1), "silu").tolist() == [0.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dead_neuron_is_plus_zero_whatever_the_other_branch_is(backend, dtype):
    dead = torch.tensor([0.0, -0.0, -1.0, -INF, -(2.0**-24)], dtype=dtype)
    up = torch.tensor([1.0, -1.0, INF, -INF, NAN, -0.0], dtype=dtype)
    g, u = (t.flatten() for t in torch.meshgrid(dead, up, indexing="ij"))
    assert same_bits(gate(backend, g, u, "relu2"), torch.zeros(30, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu2", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gate_that_is_nan_stays_nan(backend, activation, dtype):
    g = torch.full((19,), NAN, dtype=dtype)
    assert bool(gate(backend, g, torch.zeros_like(g), activation).isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overflowing_square_is_infinite_and_times_zero_is_nan(backend):
    g = torch.full((3,), 300.0, dtype=torch.float16)
    h = gate(backend, g, torch.tensor([1.0, -1.0, 0.0], dtype=torch.float16), "relu2")
    assert h[:2].tolist() == [INF, -INF]
    assert bool(h[2].isnan())


@pytest.mark.parametrize("backend", BACKENDS)
def test_silu_at_its_ends(backend):
    g = torch.tensor([INF, 1e30, 104.5, -89.0, -1e30, -INF])
    h = gate(backend, g, torch.ones(6), "silu")
    assert h[:3].tolist() == g[:3].tolist()
    # exp(89) is infinite in float32, so the quotient is a zero of the gate's sign.
    assert same_bits(h[3:5], torch.tensor([-0.0, -0.0]))
    assert bool(h[5].isnan())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_is_within_its_bound_of_the_real_function(backend, dtype):
    """One side of the contract's bound between backends: half of it, as |h| * (2^-21 + 2 v)."""
    g = torch.linspace(-80, 90, 1 << 18).to(dtype)
    u = torch.randn(1 << 18).to(dtype)
    exact = g.double() / (1 + (-g.double()).exp()) * u.double()
    error = (gate(backend, g, u, "silu").double() - exact).abs()
    # Below float32, silu(g) itself may be subnormal: an absolute step, times u, and one of h.
    slack = HALF_STEP[dtype] * (u.double().abs() + 1)
    assert bool((error <= exact.abs() * (2.0**-21 + 2 * UNIT[dtype]) + slack).all())


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_bits_depend_on_neither_position_nor_shape_nor_threads(activation, threads):
    g, u = torch.randn(100_003), torch.randn(100_003)
    want = gate("reference", g, u, activation)
    for count in (1, 2, 5):
        threads(count)
        assert same_bits(glu(g, u, activation), want)
    for start in (1, 7, 99_990):
        assert same_bits(glu(g[start:], u[start:], activation), want[start:])
    for i in (0, 5, 100_002):
        assert same_bits(glu(g[i], u[i], activation), want[i])


def real_gate(g, u, activation):
    return (g.relu().square() if activation == "relu2" else g * g.sigmoid()) * u


def gradients(fn, g, u, grad):
    g, u = g.detach().requires_grad_(), u.detach().requires_grad_()
    return torch.autograd.grad(fn(g, u), (g, u), grad)


@pytest.mark.parametrize(
    ("dtype", "compiled"), [*((dtype, False) for dtype in DTYPES), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_the_gradients_are_those_of_the_real_gate(activation, dtype, compiled):
    """Against float64 autograd. u = 2^-24; |g| <= 8 here, which bounds the cancellation.

    relu2: at most three products: 3u relative. silu: s = sigmoid(g) is off by 8u (an exp of 4u,
    a sum, a quotient, and their double for an exp that is not correctly rounded), so
    1 + g (1 - s) by u (3 + |g| (8 s + 3)), and the three products around it add 8u + 3u.
    """
    fn = lambda g, u: glu(g, u, activation)  # noqa: E731
    if compiled:
        fn = torch.compile(fn, fullgraph=True, backend="inductor")
    g, u, grad = (activations((300,), dtype, "normal", seed) * 2 for seed in (1, 2, 3))
    dg, du = gradients(fn, g, u, grad)
    g64, u64, h64 = g.double(), u.double(), grad.double()
    want_g, want_u = gradients(lambda g, u: real_gate(g, u, activation), g64, u64, h64)
    size = g64.abs()
    assert float(size.max()) <= 8
    s = g64.sigmoid()
    if activation == "relu2":
        error_g, error_u = 3 * want_g.abs(), 3 * want_u.abs()
    else:
        error_g = (h64 * u64 * s).abs() * (11 * (1 + g64 * (1 - s)).abs() + 3 + size * (8 * s + 3))
        error_u = 11 * want_u.abs()
    for got, want, error in ((dg, want_g, error_g), (du, want_u, error_u)):
        rounding = UNIT[dtype] * want.abs() + HALF_STEP[dtype]
        assert bool(((got - want).abs() <= error * 2.0**-24 * 1.001 + rounding * 1.001).all())


def test_a_dead_neuron_has_no_gradient_and_a_nan_gate_a_gradient_of_nan():
    g, u = torch.tensor([-1.0, 0.0, NAN]), torch.tensor([INF, NAN, 1.0])
    dg, du = gradients(lambda g, u: glu(g, u, "relu2"), g, u, torch.ones(3))
    assert dg[:2].tolist() == du[:2].tolist() == [0.0, 0.0]
    assert bool(dg[2].isnan())
    assert bool(du[2].isnan())


def test_wrong_arguments_are_named_with_both_values():
    g = torch.ones(2, 8)
    with pytest.raises(DTypeError, match=r"g must be float32 .* got .*float64"):
        glu(g.double(), g.double(), "relu2")
    with pytest.raises(DTypeError, match=r"dtype of g, torch.float32, got torch.float16"):
        glu(g, g.half(), "relu2")
    with pytest.raises(ShapeError, match=r"shape of g, \(2, 8\), got \(1, 8\)"):
        glu(g, g[:1], "relu2")
    with pytest.raises(ConfigurationError, match=r"one of \('relu2', 'silu'\), got 'gelu'"):
        glu(g, g, "gelu")
    with pytest.raises(DeviceError, match=r"g on cpu, u on meta"):
        glu.impls["reference"](g, g.to("meta"), "relu2")
