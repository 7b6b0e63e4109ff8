"""What is done to activations before their codes: the rotation, and codes of four bits."""

import pytest
import torch
import torch.nn.functional as F

from bitnet_torch.errors import ShapeError
from bitnet_torch.quant.activation import quantize_activation4
from bitnet_torch.quant.hadamard import hadamard, hadamard_block
from tests.bits import same_bits


def test_the_transform_is_orthogonal_and_its_own_inverse():
    x = torch.randn(3, 96, dtype=torch.float64)
    assert hadamard_block(96) == 32
    assert hadamard_block(6912) == 256
    y = hadamard(x, 32)
    torch.testing.assert_close(hadamard(y, 32), x)
    matrix = torch.tensor([[1.0]], dtype=torch.float64)
    for _ in range(5):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    want = (x.reshape(3, 3, 32) @ (matrix / 32**0.5)).reshape(3, 96)
    torch.testing.assert_close(y, want)


def test_the_smooth_part_of_the_rotated_layer_passes_gradcheck():
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: F.linear(hadamard(a, 8), b), (x, w))
    assert torch.autograd.gradgradcheck(lambda a: hadamard(a, 8), (x,))


@pytest.mark.parametrize("block", [0, 3, 16, -8])
def test_a_block_that_does_not_fit_is_refused(block):
    with pytest.raises(ShapeError, match=f"got block={block} for shape"):
        hadamard(torch.ones(2, 24), block)


def test_a_row_alone_is_rotated_as_in_a_batch(threads):
    x = torch.randn(300, 64)
    threads(2)
    batch = hadamard(x, 64)
    threads(1)
    assert same_bits(batch, torch.stack([hadamard(row, 64) for row in x]))


def test_the_rotation_keeps_what_an_outlier_would_cost():
    x = torch.randn(64, 256)
    x[:, 7] *= 60
    rest = torch.arange(256) != 7

    def error(y):
        return float((y - x)[:, rest].norm() / x[:, rest].norm())

    def int8(v):
        step = v.abs().amax(1, keepdim=True) / 127
        return (v / step).round() * step

    assert error(hadamard(int8(hadamard(x, 256)), 256)) < error(int8(x)) / 5


def test_four_bit_codes_are_those_of_the_source():
    x = torch.randn(40, 64)
    codes, scale = quantize_activation4(x)
    beta = x.double().abs().mean(1, keepdim=True)
    want = (7**0.5 / beta * x.double()).round().clamp(-8, 7)
    ties = ((7**0.5 / beta * x.double()) % 1 - 0.5).abs() < 1e-4
    assert torch.equal(codes.double()[~ties], want[~ties])
    torch.testing.assert_close(scale.double(), beta[:, 0] / 7**0.5, rtol=8 * 2**-24, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**127])
def test_a_row_that_has_no_four_bit_codes_is_nan_and_its_neighbours_are_not(value):
    x = torch.randn(3, 8)
    x[1, 2] = value
    codes, scale = quantize_activation4(x)
    assert scale.isnan().tolist() == [False, True, False]
    assert not codes[1].any()
