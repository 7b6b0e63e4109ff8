"""The gradient of the latent weight: the sum that the contract says, whatever the threads do."""

import pytest
import torch

from bitnet_torch.errors import DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import quantize_activation, ternary_linear_grad_weight, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES, activations
from tests.rounding import is_grad_weight

BACKENDS = ["reference", "cpu"]
# Around tiles of 6 rows, strips of 16 columns, blocks of 128 tokens, and more rows than a pass.
LARGE = [(128, 16, 6), (129, 17, 7), (127, 15, 5), (300, 100, 13), (3, 16, 1021), (2900, 33, 97)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES + LARGE)
def test_it_is_the_sum_of_the_contract(backend, dtype, m, k, n):
    for i, out in enumerate(DTYPES):
        x = activations((m, k), dtype, STYLES[(n + i) % len(STYLES)], seed=i)
        grad = activations((m, n), dtype, STYLES[(m + i) % len(STYLES)], seed=i + 3)
        x_q, x_scale = quantize_activation(x)
        with use_backend(backend):
            dw = ternary_linear_grad_weight(grad, x_q, x_scale, out)
        assert dw.dtype == out
        assert dw.is_contiguous()
        assert is_grad_weight(dw, grad, x_q, x_scale)


def test_hand_worked_example():
    x_q, x_scale = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    grad = torch.tensor([[1.0, 0.0, 2.0], [1.0, -1.0, 0.5]])
    dw = ternary_linear_grad_weight(grad, x_q, x_scale, torch.float32)
    # x = (0.5, -1), (6, 8).
    assert dw.tolist() == [[6.5, 7.0], [-6.0, -8.0], [4.0, 2.0]]


def test_it_is_within_one_part_in_1e5_of_float64():
    grad = torch.randn(2048, 64)
    x_q, x_scale = quantize_activation(torch.randn(2048, 100))
    dw = ternary_linear_grad_weight(grad, x_q, x_scale, torch.float32)
    exact = grad.double().T @ (x_q * x_scale[:, None]).double()
    assert ((dw - exact).norm() / exact.norm()).item() <= 1e-5


def test_leading_dimensions_are_tokens():
    grad = torch.randn(2, 3, 4, 9)
    x_q, x_scale = quantize_activation(torch.randn(2, 3, 4, 20))
    dw = ternary_linear_grad_weight(grad, x_q, x_scale, torch.float32)
    flat = ternary_linear_grad_weight(
        grad.reshape(24, 9), x_q.reshape(24, 20), x_scale.reshape(24), torch.float32
    )
    assert same_bits(dw, flat)


@pytest.mark.parametrize("m", [1, 130, 300])
def test_an_element_depends_on_neither_its_neighbours_nor_the_thread_count(m, threads):
    grad, results = torch.randn(m, 50), []
    x_q, x_scale = quantize_activation(torch.randn(m, 300))
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(ternary_linear_grad_weight(grad, x_q, x_scale, torch.float32))
    assert all(same_bits(result, results[0]) for result in results)
    part = ternary_linear_grad_weight(grad[:, 7:20], x_q[:, 33:99], x_scale, torch.float32)
    assert same_bits(part, results[0][7:20, 33:99])


def test_a_token_that_could_not_be_quantised_makes_every_weight_nan():
    x = torch.randn(5, 20)
    x[2, 3] = float("inf")
    dw = ternary_linear_grad_weight(torch.randn(5, 9), *quantize_activation(x), torch.float32)
    assert dw.isnan().all()


def test_wrong_arguments_are_named_with_both_values():
    grad, f32 = torch.randn(2, 8), torch.float32
    x_q, x_scale = quantize_activation(torch.randn(2, 16))
    with pytest.raises(ShapeError, match=r"leading shape \(2,\) and N columns, got \(3, 8\)"):
        ternary_linear_grad_weight(torch.randn(3, 8), x_q, x_scale, f32)
    with pytest.raises(ShapeError, match=r"x_scale must have .* \(2,\), got \(3,\)"):
        ternary_linear_grad_weight(grad, x_q, torch.ones(3), f32)
    with pytest.raises(DTypeError, match=r"grad must be .*, got torch\.float64"):
        ternary_linear_grad_weight(grad.double(), x_q, x_scale, f32)
    with pytest.raises(DTypeError, match=r"x_q must be int8, got torch\.float32"):
        ternary_linear_grad_weight(grad, x_q.float(), x_scale, f32)
    with pytest.raises(DTypeError, match=r"dtype must be .*, got torch\.float64"):
        ternary_linear_grad_weight(grad, x_q, x_scale, torch.float64)
    with pytest.raises(DeviceError, match=r"one device, got grad on cpu, x_q on meta"):
        ternary_linear_grad_weight(grad, x_q.to("meta"), x_scale, f32)
