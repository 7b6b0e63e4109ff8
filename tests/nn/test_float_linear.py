import copy

import pytest
import torch
from torch import nn

import bitnet_torch as bt
from bitnet_torch.errors import ShapeError
from bitnet_torch.nn import FloatLinear
from bitnet_torch.ops import float_linear
from tests.bits import same_bits


def test_it_is_a_linear_layer_with_the_ops_product():
    layer, plain = FloatLinear(20, 7), nn.Linear(20, 7)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4, 20)
    assert same_bits(layer(x), float_linear(x, plain.weight, plain.bias))
    assert same_bits(layer(x, torch.bfloat16), layer(x).bfloat16())
    # Both are within the bound of the real product: about 20 * 2^-24 of 20 terms of size 1.
    assert (layer(x) - plain(x)).abs().max() < 20 * 28 * 2.0**-22
    assert same_bits(copy.deepcopy(layer)(x), layer(x))


def test_it_learns_what_a_linear_layer_learns():
    layer, plain = FloatLinear(20, 7), nn.Linear(20, 7)
    layer.load_state_dict(plain.state_dict())
    x, g = torch.randn(30, 20), torch.randn(30, 7)
    for module in (layer, plain):
        module(x).backward(g)
    assert same_bits(layer.weight.grad, plain.weight.grad)
    assert (layer.bias.grad - plain.bias.grad).abs().max() < 30 * 38 * 2.0**-22


def test_converting_takes_it_as_a_linear_layer():
    model = nn.Sequential(FloatLinear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert bt.convert(model).converted == ("0", "2")
    assert all(type(model[i]) is bt.BitLinear for i in (0, 2))


def test_autocast_casts_the_input_only():
    layer, x = FloatLinear(20, 7), torch.randn(3, 20)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert same_bits(y, layer(x.bfloat16()))
    assert y.dtype == torch.bfloat16


def test_a_wrong_width_is_named():
    with pytest.raises(ShapeError, match=r"\(..., 20\), got \(3, 19\)"):
        FloatLinear(20, 7)(torch.randn(3, 19))
