"""Integer gradients: exact sums of what a coin has rounded, right on average."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitnet_torch import BitLinear, convert
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import QuantLinear
from bitnet_torch.nn import int8_backward as int8
from bitnet_torch.ops import quantize_activation, quantize_weight
from bitnet_torch.quant import Absmean
from tests.bits import same_bits
from tests.cases import DTYPES


def both(layer, x, grad, seed=0):
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    leaves = (x, layer.weight) if layer.bias is None else (x, layer.weight, layer.bias)
    return torch.autograd.grad(layer(x), leaves, grad)


def exact(layer, x, grad):
    """Return the straight-through gradients in float64, and what one quantum of G moves them."""
    t, w_scale = (c.double() for c in quantize_weight(layer.weight.detach(), layer.granularity))
    x_q, x_scale = (c.double() for c in quantize_activation(x.detach()))
    into, across = grad.double() * w_scale, grad.double() * x_scale[:, None]
    c = into.abs().amax(1, keepdim=True) / 127
    d = across.abs().amax(0)[:, None] / 127
    deviation_x = c / 2 * t.square().sum(0).sqrt()
    deviation_w = d / 2 * x_q.square().sum(0).sqrt()
    return (into @ t, across.T @ x_q), (deviation_x, deviation_w)


def test_rounding_by_the_coin_is_right_on_average_to_2_to_the_minus_17():
    """All 65536 values that u takes, none drawn."""
    u = (torch.arange(-32768, 32768).double() + 32768.5) / 65536
    assert bool(((u > 0) & (u < 1)).all())
    for v in (-127.0, -3.7, -1 / 3, -(2.0**-20), 0.0, 1e-3, 0.5, 2.0, 126.99):
        assert abs((v + u).floor().mean().item() - v) <= 2.0**-17


def test_the_noise_has_the_16_bits_it_is_said_to_have():
    u = int8.noise_like(torch.empty(300, 1001))
    steps = u * 65536 - 0.5
    assert same_bits(steps, steps.round())
    assert (steps.min().item(), steps.max().item()) >= (0, 65000)
    assert steps.max().item() <= 65535
    # Of 300300 draws the mean of a uniform number is off by 6 of its deviations at most.
    assert abs(u.mean().item() - 0.5) <= 6 / (12 * u.numel()) ** 0.5


@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_gradients_are_the_formula_in_integers(granularity):
    layer = BitLinear(40, 24, granularity=granularity, backward="int8")
    x, grad = torch.randn(6, 40), torch.randn(6, 24)
    dx, dw = both(layer, x, grad)
    torch.manual_seed(0)
    u = int8.noise_like(grad)
    t, w_scale = quantize_weight(layer.weight.detach(), granularity)
    x_q, x_scale = quantize_activation(x)
    for got, values, codes, dim in (
        (dx, grad * w_scale, t, 1),
        (dw, grad * x_scale[:, None], x_q, 0),
    ):
        peak = values.abs().amax(dim, keepdim=True)
        quantum = peak / torch.full_like(peak, 127)
        q = (values * (torch.full_like(peak, 127) / peak) + u).floor().clamp(-127, 127).long()
        total = q @ codes.long() if dim else q.T @ codes.long()
        assert same_bits(got, total.float() * (quantum if dim else quantum.T))


@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_the_mean_over_many_draws_is_the_straight_through_gradient(granularity):
    layer = BitLinear(48, 20, granularity=granularity, backward="int8")
    x, grad = torch.randn(9, 48), torch.randn(9, 20) * torch.logspace(-3, 3, 9)[:, None]
    want, deviation = exact(layer, x, grad)
    draws = 400
    sums = [torch.zeros_like(w) for w in want]
    for seed in range(draws):
        for total, one in zip(sums, both(layer, x, grad, seed), strict=True):
            total += one.double()
    for total, value, sigma in zip(sums, want, deviation, strict=True):
        error = (total / draws - value).abs()
        # Six deviations of the mean; the float32 quantum may be off by 2^-22 of what it scales.
        assert bool((error <= 6 * sigma / draws**0.5 + 2.0**-22 * 127 * 48 * sigma).all())
        # And it is an estimate: a single draw is off by more.
    assert not same_bits(both(layer, x, grad, 0)[0], both(layer, x, grad, 1)[0])


def test_one_draw_is_within_a_quantum_for_each_term():
    layer = BitLinear(256, 128, backward="int8")
    x, grad = torch.randn(64, 256), torch.randn(64, 128)
    want, deviation = exact(layer, x, grad)
    for got, value, sigma in zip(both(layer, x, grad), want, deviation, strict=True):
        assert bool(((got - value).abs() <= 7 * sigma).all())
        assert ((got - value).norm() / value.norm()).item() < 0.02


def test_a_seed_fixes_the_gradients_for_any_number_of_threads(threads):
    layer = BitLinear(96, 64, bias=True, backward="int8")
    x, grad = torch.randn(3, 5, 96), torch.randn(3, 5, 64)
    threads(2)
    want = both(layer, x, grad, seed=7)
    threads(1)
    assert all(same_bits(a, b) for a, b in zip(both(layer, x, grad, seed=7), want, strict=True))
    assert not same_bits(both(layer, x, grad, seed=8)[0], want[0])
    layer.backward = "float"
    # The bias has no product and therefore no noise.
    assert same_bits(both(layer, x, grad)[2], want[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**126])
def test_a_gradient_that_cannot_be_rounded_is_nan_and_stays_in_its_rows(bad):
    layer, x, grad = BitLinear(16, 8, backward="int8"), torch.randn(4, 16), torch.randn(4, 8)
    grad[2, 5] = bad
    dx, dw = both(layer, x, grad)
    assert bool(dx[2].isnan().all()) or bad == 2.0**126
    assert bool(dw[5].isnan().all()) or bad == 2.0**126
    if bad != 2.0**126:
        assert bool(dx[[0, 1, 3]].isfinite().all())
        assert bool(dw[[0, 1, 2, 3, 4, 6, 7]].isfinite().all())


@pytest.mark.parametrize("size", [0.0, 2.0**-149, 2.0**-130, 2.0**-90])
def test_tiny_gradients_are_right_on_average_or_zero(size):
    layer, x = BitLinear(16, 8, backward="int8"), torch.randn(4, 16)
    dx, dw = both(layer, x, torch.full((4, 8), size))
    assert bool(dx.isfinite().all())
    assert bool(dw.isfinite().all())
    if size == 0.0:
        assert not bool(dx.any())
        assert not bool(dw.any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lead", [(), (0,), (1,), (2, 3), (1, 17)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_every_shape_and_dtype_has_gradients_of_its_own(dtype, lead):
    for k, n in ((1, 1), (5, 0), (0, 5), (33, 7), (64, 40)):
        layer = BitLinear(k, n, dtype=dtype, backward="int8")
        x = torch.randn(*lead, k).to(dtype)
        dx, dw = both(layer, x, torch.randn(*lead, n).to(dtype))
        assert (dx.dtype, dx.shape, dw.dtype, dw.shape) == (dtype, x.shape, dtype, (n, k))


def test_sums_of_more_tokens_than_an_int32_holds_are_cut(monkeypatch):
    layer, x, grad = BitLinear(8, 4, backward="int8"), torch.randn(50, 8), torch.randn(50, 4)
    want = both(layer, x, grad)[1]
    monkeypatch.setattr(int8, "_TOKENS", 16)
    # Four partial sums, each exact as a float32, are added up in float32.
    assert same_bits(both(layer, x, grad)[1], want)


def test_the_forward_pass_and_the_packed_form_are_what_they_were():
    layer, x = BitLinear(64, 32, backward="int8"), torch.randn(5, 64)
    want = layer(x)
    layer.backward = "float"
    assert same_bits(layer(x), want)
    assert same_bits(layer.packed()(x), want)


def test_convert_and_quantisers_take_it_and_wrong_names_are_refused():
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8))
    convert(model, backward="int8")
    assert [layer.backward for layer in model] == ["int8", "int8"]
    assert "backward='int8'" in repr(model)
    with pytest.raises(ConfigurationError, match=r"one of \('float', 'int8'\), got 'fp8'"):
        BitLinear(8, 8, backward="fp8")
    with pytest.raises(ConfigurationError, match=r"one of \('float', 'int8'\), got 'fp8'"):
        convert(nn.Sequential(nn.Linear(4, 4)), backward="fp8")
    layer = QuantLinear(32, 16, quantizer=Absmean("row"))
    layer.backward = "int8"
    plain = BitLinear(32, 16, granularity="row", backward="int8")
    plain.load_state_dict(layer.state_dict(), strict=False)
    x, grad = torch.randn(3, 32), torch.randn(3, 16)
    got, want = both(layer, x, grad)[:2], both(plain, x, grad)[:2]
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


def test_it_compiles_in_one_graph():
    layer, x = BitLinear(64, 32, backward="int8"), torch.randn(6, 64, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    dx, dw = torch.autograd.grad(compiled(x).square().sum(), (x, layer.weight))
    layer.backward = "float"
    want = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))
    for got, value in zip((dx, dw), want, strict=True):
        assert ((got - value).norm() / value.norm()).item() < 0.1


def test_a_student_recovers_the_codes_of_a_ternary_teacher():
    torch.manual_seed(0)
    teacher, x = torch.randint(-1, 2, (16, 32)).float(), torch.randn(512, 32)
    student = BitLinear(32, 16, backward="int8")
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(student(x), x @ teacher.T).backward()
        optimizer.step()
    t, _ = quantize_weight(student.weight.detach())
    assert (t == teacher).float().mean().item() >= 0.99
