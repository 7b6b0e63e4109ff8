"""A weight whose values are elsewhere: a layer computes with its codes, others are refused."""

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.errors import QuantizationError
from bitnet_torch.nn import BitLinear
from bitnet_torch.nn.gathered_weight import GatheredWeight
from tests.bits import same_bits


def gathered(layer):
    packed, w_scale = layer.codes()
    shape, dtype = layer.weight.shape, layer.weight.dtype
    return torch.nn.Parameter(GatheredWeight(packed, w_scale, shape, dtype))


@pytest.mark.parametrize("granularity", ["matrix", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_has_the_outputs_and_gradients_that_its_latent_weight_gives(granularity, dtype):
    plain = BitLinear(15, 7, bias=True, dtype=dtype, granularity=granularity)
    other = BitLinear(15, 7, bias=True, dtype=dtype, granularity=granularity)
    other.load_state_dict(plain.state_dict())
    other.weight = gathered(plain)
    x = torch.randn(3, 15, dtype=dtype)
    outputs = [layer(x) for layer in (plain, other)]
    assert same_bits(*outputs)
    for y in outputs:
        y.square().sum().backward()
    assert same_bits(plain.weight.grad, other.weight.grad)
    assert same_bits(plain.bias.grad, other.bias.grad)
    assert type(other.weight.grad) is torch.Tensor
    assert same_bits(plain.packed()(x), other.packed()(x))


def test_it_shows_shape_and_dtype_and_makes_plain_tensors_like_itself():
    weight = gathered(BitLinear(5, 3))
    assert type(weight) is GatheredWeight
    assert repr(weight) == "GatheredWeight(shape=(3, 5), dtype=torch.float32, cpu)"
    zeros = torch.zeros_like(weight)
    assert type(zeros) is torch.Tensor
    assert same_bits(zeros, torch.zeros(3, 5))
    assert type(weight.detach()) is GatheredWeight
    assert type(weight.view(3, 5)) is GatheredWeight
    assert weight.as_strided((3, 5), (5, 1)).packed is weight.packed


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w + 1,
        lambda w: w[0],
        lambda w: w.view(5, 3),
        lambda w: w.as_strided((3, 5), (1, 3)),
        lambda w: w.as_strided((2, 5), (5, 1), 5),
        lambda w: w.detach().copy_(torch.zeros(3, 5)),
        lambda w: torch.ones(1, 5) @ w.T,
        lambda w: ops.quantize_weight(w.detach()),
        lambda w: w.to(torch.bfloat16),
    ],
)
def test_reading_or_writing_its_values_is_refused(use):
    with pytest.raises(QuantizationError, match="read them from the model's state_dict"):
        use(gathered(BitLinear(5, 3)))
