"""The gradient of the input: the sum that the contract says, in an order of its own rows only."""

import pytest
import torch

from bitnet_torch.errors import DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import pack_codes, ternary_linear_grad_input, use_backend
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES, activations, codes
from tests.rounding import is_grad_input

BACKENDS = ["reference", "cpu"]
# Around tiles of 6 rows, strips of 16 columns, blocks of 128 sums, and more rows than a pass.
LARGE = [(6, 16, 128), (7, 17, 129), (5, 15, 512), (13, 100, 517), (1021, 16, 33), (97, 33, 2700)]


def scale_of(n, rows):
    return torch.rand((n,) if rows else ()) + 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["matrix", "row"])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES + LARGE)
def test_it_is_the_sum_of_the_contract(backend, dtype, rows, m, k, n):
    t, scale = codes(n, k, 1), scale_of(n, rows)
    for i, out in enumerate(DTYPES):
        grad = activations((m, n), dtype, STYLES[(m + i) % len(STYLES)], seed=i)
        with use_backend(backend):
            dx = ternary_linear_grad_input(grad, pack_codes(t), scale, out)
        assert dx.dtype == out
        assert dx.is_contiguous()
        assert is_grad_input(dx, grad, t, scale)


def test_hand_worked_example():
    t = torch.tensor([[1, 0], [-1, 1], [1, 1]], dtype=torch.int8)
    grad = torch.tensor([[1.0, 2.0, 4.0]])
    dx = ternary_linear_grad_input(grad, pack_codes(t), torch.tensor(0.5), torch.float32)
    assert dx.tolist() == [[0.5 * (1 - 2 + 4), 0.5 * (2 + 4)]]
    scale = torch.tensor([1.0, 0.5, 0.25])
    dx = ternary_linear_grad_input(grad, pack_codes(t), scale, torch.float32)
    assert dx.tolist() == [[1.0, 2.0]]


def test_it_is_within_one_part_in_1e5_of_float64():
    # The bound of the contract for any order; what random signs leave of it is far less.
    n, k = 2560, 300
    grad, t = torch.randn(64, n), codes(n, k, 1)
    dx = ternary_linear_grad_input(grad, pack_codes(t), torch.tensor(0.02), torch.float32)
    exact = (grad * torch.tensor(0.02)).double() @ t.double()
    assert ((dx - exact).norm() / exact.norm()).item() <= 1e-5


@pytest.mark.parametrize("m", [1, 5, 33])
def test_a_row_depends_on_neither_its_neighbours_nor_the_thread_count(m, threads):
    n, k = 517, 300
    grad, t, scale = torch.randn(m, n), codes(n, k, 1), torch.rand(n)
    packed, results = pack_codes(t), []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(ternary_linear_grad_input(grad, packed, scale, torch.float32))
    assert all(same_bits(result, results[0]) for result in results)
    for row in range(m):
        alone = ternary_linear_grad_input(grad[row], packed, scale, torch.float32)
        assert same_bits(alone, results[0][row])


def test_wrong_arguments_are_named_with_both_values():
    grad, packed, scale, f32 = (
        torch.randn(2, 8),
        pack_codes(codes(8, 64, 1)),
        torch.ones(()),
        DTYPES[0],
    )
    with pytest.raises(ShapeError, match=r"packed must be .* = \(3, 64\), got \(2, 64\)"):
        ternary_linear_grad_input(torch.randn(2, 9), packed, scale, f32)
    with pytest.raises(ShapeError, match=r"got \(\) and \(2, 64\)"):
        ternary_linear_grad_input(torch.tensor(1.0), packed, scale, f32)
    with pytest.raises(ShapeError, match=r"w_scale must be .* \(8,\), got \(7,\)"):
        ternary_linear_grad_input(grad, packed, torch.ones(7), f32)
    with pytest.raises(DTypeError, match=r"grad must be .*, got torch\.float64"):
        ternary_linear_grad_input(grad.double(), packed, scale, f32)
    with pytest.raises(DTypeError, match=r"dtype must be .*, got torch\.int8"):
        ternary_linear_grad_input(grad, packed, scale, torch.int8)
    with pytest.raises(DeviceError, match=r"one device, got grad on cpu, packed on meta"):
        ternary_linear_grad_input(grad, packed.to("meta"), scale, f32)
