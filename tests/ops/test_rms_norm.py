"""RMSNorm against numpy, by hand, at its edges; its gradient against float64 autograd."""

import numpy as np
import pytest
import torch

from bitnet_torch.errors import ConfigurationError, DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import rms_norm, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, STYLES, activations

BACKENDS = ["reference", "cpu"]
SHAPES = [(5, 1), (9, 7), (3, 4, 64), (33, 513)]
# Of one rounding to the dtype: relative, and absolute among its subnormals.
HALF_ULP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
HALF_STEP = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}


def numpy_norm(x, weight, eps, dtype):
    """The contract, step by step, in numpy; only the rounding to ``dtype`` is PyTorch's."""
    to_dtype = lambda a: torch.from_numpy(a).to(dtype).to(torch.float32).numpy()  # noqa: E731
    peak = np.abs(x).max(-1, keepdims=True)
    good = peak < 2.0**63
    x = np.where(good, x, np.float32(0))
    e = np.maximum(np.frexp(np.where(good, peak, np.float32(1)))[1], -40)
    u = np.rint(np.ldexp(x, 22 - e)).astype(np.int64)
    total = np.array([sum(int(v) ** 2 for v in row) for row in u.reshape(-1, x.shape[-1])])
    total = total.astype(np.float32).reshape(peak.shape)
    ms = np.ldexp(total / np.float32(x.shape[-1]), 2 * (e - 22))
    r = np.float32(1) / np.sqrt(ms + np.float32(eps))
    y = to_dtype(weight * to_dtype(x * r))
    return torch.from_numpy(np.where(good, y, np.float32("nan"))).to(dtype)


def norm(backend, *args):
    with use_backend(backend):
        return rms_norm(*args)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_a_quarter_million_values_equal_numpy(backend, dtype, style):
    x = activations((512, 512), dtype, style, seed=3)
    weight = torch.randn(512)
    want = numpy_norm(x.float().numpy(), weight.numpy(), 1e-5, dtype)
    assert same_bits(norm(backend, x, weight, 1e-5), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_worked_row(backend):
    # a = 4 = 0.5 * 2^3, so u = x * 2^19 and S = (9 + 16) * 2^38; K = 2: ms = 12.5 exactly.
    # eps = 12.5 makes 25, the root 5, r = fl32(0.2).
    x, weight = torch.tensor([3.0, -4.0]), torch.tensor([1.0, 10.0])
    r = np.float32(1) / np.float32(5)
    want = [np.float32(3) * r, np.float32(10) * (np.float32(-4) * r)]
    assert norm(backend, x, weight, 12.5).tolist() == [float(v) for v in want]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_rounds_between_the_norm_and_the_weight(backend):
    # x * r = 0.99999...: rounds to 1 before the weight 1.0078125 = 1 + 2^-7, which stays.
    x = torch.full((4,), 3.0, dtype=torch.bfloat16)
    weight = torch.full((4,), 1 + 2.0**-7, dtype=torch.bfloat16)
    assert same_bits(norm(backend, x, weight, 1e-5), weight)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**63, -(2.0**100)])
def test_a_row_that_has_no_norm_is_nan_and_leaves_the_others_alone(backend, bad):
    x, weight = torch.randn(3, 40), torch.randn(40)
    want = norm(backend, x, weight, 1e-5)
    x[1, 17] = bad
    y = norm(backend, x, weight, 1e-5)
    assert bool(y[1].isnan().all())
    assert same_bits(y[::2], want[::2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_just_below_two_to_the_63_is_still_normalised(backend):
    largest = float(np.nextafter(np.float32(2.0**63), np.float32(0)))
    y = norm(backend, torch.full((1, 5), -largest), torch.ones(5), 1e-5)
    assert same_bits(
        y, numpy_norm(np.full((1, 5), -largest, np.float32), np.ones(5), 1e-5, y.dtype)
    )
    # u is 2^22 - 1/4, rounded to 2^22; the root and the reciprocal are within 2^-23.
    assert bool(((y + 1).abs() <= 2.0**-22).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_stay_zeros_with_their_signs(backend, dtype):
    x = torch.tensor([[0.0, -0.0, 0.0]], dtype=dtype)
    weight = torch.tensor([1.0, 1.0, -1.0])
    assert same_bits(
        norm(backend, x, weight, 1e-12), torch.tensor([[0.0, -0.0, -0.0]], dtype=dtype)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_subnormal_rows_are_divided_by_the_root_of_eps(backend):
    x = torch.tensor([[2.0**-149, -(2.0**-127), 2.0**-60, 0.0]])
    weight = torch.ones(4)
    want = numpy_norm(x.numpy(), weight.numpy(), 1e-12, torch.float32)
    y = norm(backend, x, weight, 1e-12)
    assert same_bits(y, want)
    r = 1 / np.sqrt(np.float64(np.float32(1e-12)))
    assert y[0, 2].item() == pytest.approx(2.0**-60 * r, rel=2.0**-22)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5, 0.1, 3e38])
def test_any_allowed_eps_equals_numpy(backend, eps):
    x, weight = activations((64, 33), torch.float32, "mixed", 5), torch.randn(33)
    want = numpy_norm(x.numpy(), weight.numpy(), eps, torch.float32)
    assert same_bits(norm(backend, x, weight, eps), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_one_element_become_the_weight_with_their_sign(backend):
    x, weight = torch.tensor([[7.0], [-0.3], [1e15]]), torch.tensor([2.0])
    y = norm(backend, x, weight, 1e-12)
    # u is within half of 2^-21 of x * 2^(22 - e); then a quotient, a sum, a root, a quotient.
    assert bool(((y / 2 - x.sign()).abs() <= 2.0**-21 + 4 * 2.0**-24).all())
    assert same_bits(y, numpy_norm(x.numpy(), weight.numpy(), 1e-12, torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_longest_row_sums_exactly(backend):
    # Every u is 2^22 - 1 but one: S = 131071 * (2^22 - 1)^2 + 2^44, near 2^61.
    k = 131072
    x = torch.full((1, k), 1 - 2.0**-22)
    x[0, 0] = 1.0
    x[0, 1:] *= 2.0  # a = 2 (1 - 2^-22): u = 2^22 - 1
    total = (k - 1) * (2**22 - 1) ** 2 + 2**42
    ms = np.float32(total) / np.float32(k) * np.float32(2.0**-42)
    r = np.float32(1) / np.sqrt(ms + np.float32(1e-5))
    assert norm(backend, x, torch.ones(k), 1e-5)[0, 0].item() == float(r)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bits_depend_on_neither_batch_nor_threads_nor_the_weights_dtype(backend, threads):
    x, weight = torch.randn(300, 2560).bfloat16(), torch.randn(2560).bfloat16()
    want = norm(backend, x, weight, 1e-5)
    for count in (1, 2, 5):
        threads(count)
        assert same_bits(norm(backend, x, weight, 1e-5), want)
    assert same_bits(norm(backend, x[7:8], weight, 1e-5), want[7:8])
    assert same_bits(norm(backend, x, weight.float(), 1e-5), want)


def test_the_result_is_near_the_real_norm():
    """Each step's rounding, added up: the bound of the module docstring, then four roundings."""
    for k in (1, 7, 64, 513):
        x, weight, eps = torch.randn(50, k), torch.randn(k), 1e-5
        exact = exact_norm(x.double(), weight.double(), eps)
        bound = root_error(x) + 2 * 2.0**-24
        assert bool(((rms_norm(x, weight, eps) - exact).abs() <= bound * exact.abs()).all())


def exact_norm(x, weight, eps):
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def root_error(x):
    """Bound the relative error of r, per row: half the mean square's, and its roundings.

    A term is off by half a quantum q = 2^(e - 22); the sum of squares, relatively, by at most
    q * sum|x| / sum x^2 + K q^2 / 4 / sum x^2 <= q / rms + (q / rms)^2 / 4 (Cauchy-Schwarz). Then
    fl32(S), the quotient and the sum with eps count half, root and reciprocal whole: 3.5 roundings.
    """
    x = x.double()
    q = torch.exp2(torch.frexp(x.abs().amax(-1, keepdim=True))[1].clamp_min(-40) - 22.0)
    crest = q / x.square().mean(-1, keepdim=True).sqrt()
    # eps itself is rounded to float32: half of 2^-24 more.
    return (crest + crest.square() / 4) / 2 + 4 * 2.0**-24


def gradients(fn, x, weight, grad):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(fn(x, weight), (x, weight), grad)


@pytest.mark.parametrize(
    ("dtype", "shape", "compiled"),
    [
        *((dtype, shape, False) for dtype in DTYPES for shape in SHAPES),
        (torch.float32, (3, 4, 64), True),
        (torch.bfloat16, (3, 4, 64), True),
    ],
)
def test_the_gradient_is_that_of_the_real_norm(dtype, shape, compiled):
    """Against float64 autograd, within the roundings of the formula in the module docstring.

    With p = root_error, u = 2^-24: n is off by p + u, H by u, H * n by p + 3u and its mean by
    K u more, r by p + 2u (a quotient, of an n); so dx = r (H - n c) by r |H| (p + 5u) + r |n|
    mean|H n| (3p + (K + 10) u), and dweight, a sum over M rows, by (p + (M + 3) u) * sum |G n|.
    Terms of second order are covered by a factor 1 + 2^-10; a result below float32 is rounded
    once more.
    """
    fn = lambda x, w: rms_norm(x, w, 1e-5)  # noqa: E731
    if compiled:
        fn = torch.compile(fn, fullgraph=True, backend="inductor")
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    grad = torch.randn(shape).to(dtype)
    dx, dweight = gradients(fn, x, weight, grad)
    x64, w64, g64 = x.double(), weight.double(), grad.double()
    want_x, want_w = gradients(lambda x, w: exact_norm(x, w, 1e-5), x64, w64, g64)
    u, k, p = 2.0**-24, shape[-1], root_error(x)
    r = 1 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    h, n = (g64 * w64).abs(), (x64 * r).abs()
    error = r * (h * (p + 5 * u) + n * (h * n).mean(-1, keepdim=True) * (3 * p + (k + 10) * u))
    rounding = HALF_ULP[dtype] + 2.0**-10 * u
    step = HALF_STEP[dtype]
    assert bool(((dx - want_x).abs() <= error * 1.001 + rounding * want_x.abs() + step).all())
    rows = x.numel() // k
    error = ((p + (rows + 3) * u) * g64.abs() * n).reshape(-1, k).sum(0)
    assert bool(((dweight - want_w).abs() <= error * 1.001 + rounding * want_w.abs() + step).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_holds_where_squares_overflow_float32(dtype):
    x, weight = torch.full((2, 64), 2.0**62, dtype=dtype), torch.ones(64, dtype=dtype)
    dx, dweight = gradients(lambda x, w: rms_norm(x, w, 1e-5), x, weight, torch.ones_like(x))
    assert bool((dweight == 2).all())
    assert bool((dx.abs() <= 2.0**-62).all())


@pytest.mark.parametrize("peak", [0.0, 2.0**-149, 2.0**-127, 2.0**-60, 2.0**-41, 2.0**-39])
@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_the_gradient_of_a_tiny_row_is_that_of_a_division_by_eps(peak, eps):
    """The mean square is below 2^-77 and eps above 2^-40: r = 1 / sqrt(eps) to 2^-38."""
    x, weight, grad = peak * torch.ones(2, 8), torch.randn(8), torch.randn(2, 8)
    dx, _ = gradients(lambda x, w: rms_norm(x, w, eps), x, weight, grad)
    want = grad.double() * weight.double() / eps**0.5
    assert bool(((dx - want).abs() <= 8 * 2.0**-24 * want.abs().max()).all())


def test_a_row_without_a_norm_has_a_gradient_of_nan():
    x, weight = torch.randn(2, 8), torch.randn(8)
    x[1, 3] = float("inf")
    dx, dweight = gradients(lambda x, w: rms_norm(x, w, 1e-5), x, weight, torch.ones(2, 8))
    assert bool(dx[0].isfinite().all())
    assert bool(dx[1].isnan().all())
    assert bool(dweight.isnan().all())


def test_only_the_gradients_asked_for_are_made():
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(8)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_wrong_arguments_are_named_with_both_values():
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(DTypeError, match=r"x must be float32 .* got .*float64"):
        rms_norm(x.double(), weight, 1e-5)
    with pytest.raises(DTypeError, match=r"weight must be float32 .* got .*int32"):
        rms_norm(x, weight.int(), 1e-5)
    with pytest.raises(ShapeError, match=r"weight must be \(K,\) = \(8,\), got \(7,\)"):
        rms_norm(x, weight[:7], 1e-5)
    with pytest.raises(ShapeError, match="at least one dimension"):
        rms_norm(torch.tensor(1.0), weight, 1e-5)
    with pytest.raises(ShapeError, match=r"K=131073 columns; sums are exact up to K=131072"):
        rms_norm(torch.zeros(1, 131073), torch.zeros(131073), 1e-5)
    with pytest.raises(DeviceError, match=r"x on cpu, weight on meta"):
        rms_norm.impls["reference"](x, weight.to("meta"), 1e-5)
    for eps in (9.9e-13, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match=rf"at least 1e-12, got {eps}"):
            rms_norm(x, weight, eps)
