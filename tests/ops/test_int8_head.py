"""quantize_head and int8_linear: by hand, at the ends of their ranges, and what they refuse."""

import pytest
import torch

from bitnet_torch.errors import DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import int8_linear, quantize_activation, quantize_head
from tests.bits import same_bits
from tests.cases import DTYPES


def agree(op, *args):
    got, want = op(*args), op.impls["reference"](*args)
    got, want = ((t,) if isinstance(t, torch.Tensor) else t for t in (got, want))
    return all(same_bits(g, w) for g, w in zip(got, want, strict=True))


def test_a_head_by_hand():
    weight = torch.tensor([[127.0, -1.5, 0.4], [-2.54, 0.03, 1.27], [0.0, 0.0, -0.0]])
    h, scale = quantize_head(weight)
    assert h.tolist() == [[127, -2, 0], [-127, 2, 64], [0, 0, 0]]
    # -1.5 is a tie and goes to even; 1.27 / 0.02 is above 63.5 in float32.
    assert scale.tolist() == torch.tensor([1.0, 0.02, 1e-12]).tolist()
    x_q, x_scale = (
        torch.tensor([[1, 2, -3], [-128, 0, 5]], dtype=torch.int8),
        torch.tensor([0.5, 2.0]),
    )
    y = int8_linear(x_q, x_scale, h, scale, torch.float32)
    acc = torch.tensor([[123.0, -315.0, 0.0], [-16256.0, 16576.0, 0.0]])
    assert same_bits(y, acc * (x_scale[:, None] * scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_is_within_half_a_quantum(dtype):
    weight = (torch.randn(50, 300) * torch.logspace(-3, 3, 50)[:, None]).to(dtype)
    h, scale = quantize_head(weight)
    off = weight.double() - h.double() * scale[:, None].double()
    # The division and the scale are each off by a rounding of a quotient of at most 127.
    assert bool((off.abs() <= scale[:, None].double() * (0.5 + 127 * 2.0**-23)).all())
    assert int(h.min()) >= -127
    assert bool((h.abs().amax(1) == 127).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_has_no_scale_and_its_neighbours_do(bad):
    weight = torch.randn(4, 40)
    weight[2, 39] = bad
    h, scale = quantize_head(weight)
    assert scale.isnan().tolist() == [False, False, True, False]
    assert not h[2].any()
    assert agree(quantize_head, weight)
    x_q, x_scale = quantize_activation(torch.randn(3, 40))
    y = int8_linear(x_q, x_scale, h, scale, torch.float32)
    assert y.isnan().all(0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("value", [3.4e38, 1e-38, 2.0**-149, 1e-12, 1.27e-10, 0.0])
def test_extreme_heads_have_the_references_bits(value):
    weight = torch.full((3, 70), value) * torch.tensor([1.0, -0.5, 0.001])[:, None]
    assert agree(quantize_head, weight)


@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("code", [-127, 127])
@pytest.mark.parametrize("k", [31, 32, 33, 6912, 131072])
def test_saturated_rows_sum_exactly(x, code, k):
    h = torch.full((5, k), code, dtype=torch.int8)
    for m in (1, 3):
        x_q = torch.full((m, k), x, dtype=torch.int8)
        y = int8_linear(x_q, torch.ones(m), h, torch.ones(5), torch.float32)
        # Up to 2.1e9, where float32 rounds to multiples of 128.
        assert same_bits(y, torch.full((m, 5), x * code * k, dtype=torch.int32).float())


def test_wrong_arguments_are_named():
    x_q, x_scale = torch.zeros(2, 4, dtype=torch.int8), torch.ones(2)
    h, h_scale = torch.zeros(3, 4, dtype=torch.int8), torch.ones(3)
    with pytest.raises(DTypeError, match=r"x_q must be int8, got torch.float32"):
        int8_linear(x_q.float(), x_scale, h, h_scale, torch.float32)
    with pytest.raises(DTypeError, match=r"h must be int8, got torch.uint8"):
        int8_linear(x_q, x_scale, h.to(torch.uint8), h_scale, torch.float32)
    with pytest.raises(DTypeError, match=r"h_scale must be float32, got torch.bfloat16"):
        int8_linear(x_q, x_scale, h, h_scale.bfloat16(), torch.float32)
    with pytest.raises(DTypeError, match=r"dtype must be .*, got torch.int8"):
        int8_linear(x_q, x_scale, h, h_scale, torch.int8)
    with pytest.raises(ShapeError, match=r"h must be \(N, K\) = \(N, 4\), got \(3, 3\)"):
        int8_linear(x_q, x_scale, h[:, :3], h_scale, torch.float32)
    with pytest.raises(ShapeError, match=r"h_scale must be \(N,\) = \(3,\), got \(2,\)"):
        int8_linear(x_q, x_scale, h, h_scale[:2], torch.float32)
    with pytest.raises(ShapeError, match=r"x_scale must have .* \(2,\), got \(3,\)"):
        int8_linear(x_q, h_scale, h, h_scale, torch.float32)
    long = torch.zeros(1, 131073, dtype=torch.int8)
    with pytest.raises(ShapeError, match="K=131073"):
        int8_linear(long, x_scale[:1], long, h_scale[:1], torch.float32)
    with pytest.raises(DeviceError, match="h on meta"):
        int8_linear(x_q, x_scale, h.to("meta"), h_scale, torch.float32)
    with pytest.raises(ShapeError, match=r"weight must be \(N, K\), got \(4,\)"):
        quantize_head(torch.zeros(4))
    with pytest.raises(DTypeError, match=r"weight must be .*, got torch.float64"):
        quantize_head(torch.zeros(4, 4).double())
