"""The packed module: what it shows, what it refuses, and what moves leave alone."""

import copy
import pickle

import pytest
import torch

from bitnet_torch import BitLinear, PackedBitLinear, use_backend
from bitnet_torch.errors import DTypeError, QuantizationError, ShapeError
from bitnet_torch.ops import pack_codes
from tests.bits import same_bits
from tests.cases import codes


def make(n=10, k=33, **kwargs):
    return BitLinear(k, n, **kwargs).packed()


def test_it_shows_the_exchange_layout_whatever_it_holds():
    packed = pack_codes(codes(10, 33, 1))
    layer = PackedBitLinear(packed, torch.tensor(0.5), 10)
    assert layer.layout == "panel8"
    assert same_bits(layer.weight, packed)
    assert same_bits(layer.state_dict()["weight"], packed)
    assert (layer.in_features, layer.out_features) == (33, 10)
    assert set(layer.state_dict()) == {"weight", "weight_scale"}


def test_it_holds_one_copy_of_the_codes():
    layer = make(64, 256)
    held = sum(b.nbytes for b in layer.buffers())
    assert held == 64 * 256 // 4 + 4


def test_weight_is_read_only():
    layer = make()
    with pytest.raises(AttributeError):
        layer.weight = layer.weight


def test_it_owns_its_scale():
    scale = torch.tensor(0.5)
    layer = PackedBitLinear(pack_codes(codes(8, 8, 1)), scale, 8)
    scale.fill_(9.0)
    assert layer.weight_scale.item() == 0.5


def test_a_pickle_made_with_one_layout_opens_with_another():
    layer, x = make(), torch.randn(3, 33)
    blob = pickle.dumps(layer)
    with use_backend("reference"):
        other = pickle.loads(blob)
        assert other.layout == "exchange"
        assert same_bits(other(x), layer(x))
        back = pickle.dumps(other)
    assert pickle.loads(back).layout == "panel8"
    assert same_bits(pickle.loads(back)(x), layer(x))


def test_deepcopy_shares_nothing():
    layer = make(bias=True)
    twin = copy.deepcopy(layer)
    twin.weight_scale.zero_()
    twin.prepacked.zero_()
    twin.bias.zero_()
    assert layer.weight_scale.item() != 0
    assert layer.prepacked.any()
    assert layer.bias.any()


def test_loading_replaces_codes_scale_and_bias():
    a, b, x = make(bias=True), make(bias=True), torch.randn(2, 33)
    assert not same_bits(a(x), b(x))
    a.load_state_dict(b.state_dict())
    assert same_bits(a(x), b(x))


def test_moving_to_meta_keeps_shapes():
    layer = make().to("meta")
    assert layer.prepacked.is_meta
    assert layer.weight_scale.is_meta
    assert layer.weight.shape == (3, 33)


def test_a_state_dict_that_does_not_fit_is_refused_by_key():
    layer = make()
    good = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        layer.load_state_dict({"weight_scale": good["weight_scale"]})
    with pytest.raises(RuntimeError, match=r"packed must be .* \(3, 33\), got \(3, 32\)"):
        layer.load_state_dict({**good, "weight": good["weight"][:, 1:]})
    with pytest.raises(RuntimeError, match=r"layer: packed must be uint8"):
        layer.load_state_dict({**good, "weight": good["weight"].float()})
    with pytest.raises(RuntimeError, match=r"code 3"):
        layer.load_state_dict({**good, "weight": torch.full((3, 33), 255, dtype=torch.uint8)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surprise"):
        layer.load_state_dict({**good, "surprise": torch.zeros(1)})
    assert same_bits(layer.weight, good["weight"])


def test_a_refused_load_leaves_the_scale_with_its_codes():
    layer = make()
    good = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match="code 3"):
        layer.load_state_dict(
            {"weight": torch.full_like(good["weight"], 255), "weight_scale": torch.tensor(9.0)}
        )
    with pytest.raises(RuntimeError, match="weight_scale must be float32"):
        layer.load_state_dict({**good, "weight_scale": good["weight_scale"].bfloat16()})
    assert same_bits(layer.weight_scale, good["weight_scale"])


def test_codes_of_another_number_of_rows_are_refused_though_their_bytes_would_fit():
    with pytest.raises(RuntimeError, match="out_features is 12, the codes have 10 rows"):
        make(n=12).load_state_dict(make(n=10).state_dict())


def test_a_layer_made_on_meta_can_be_filled_from_a_state_dict():
    layer, x = make(), torch.randn(2, 33)
    empty = make().to("meta").to_empty(device="cpu")
    assert empty.layout == "panel8"
    empty.load_state_dict(layer.state_dict())
    assert same_bits(empty(x), layer(x))


@pytest.mark.parametrize("k", [32, 34, 48])
def test_an_input_of_another_width_is_refused_though_padding_would_hide_it(k):
    for layer in (BitLinear(33, 10), make()):
        with pytest.raises(ShapeError, match=rf"\(\.\.\., 33\), got \(2, {k}\)"):
            layer(torch.randn(2, k))


def test_a_default_device_is_not_where_the_kernels_write():
    layer, x = BitLinear(33, 10), torch.randn(2, 33)
    want = layer(x)
    with torch.device("meta"):
        packed = copy.deepcopy(layer.packed())
        assert same_bits(packed(x), want)
        assert same_bits(PackedBitLinear(packed.weight, packed.weight_scale, 10)(x), want)
        with use_backend("cpu"):
            assert same_bits(layer(x), want)


def test_construction_refuses_what_does_not_fit():
    packed, one = pack_codes(codes(10, 33, 1)), torch.tensor(1.0)
    with pytest.raises(ShapeError, match=r"\(5, 33\), got \(3, 33\)"):
        PackedBitLinear(packed, one, 20)
    with pytest.raises(DTypeError, match="packed must be uint8"):
        PackedBitLinear(packed.float(), one, 10)
    with pytest.raises(DTypeError, match="w_scale must be float32"):
        PackedBitLinear(packed, one.half(), 10)
    with pytest.raises(ShapeError, match="bias must be"):
        PackedBitLinear(packed, one, 10, torch.zeros(9))
    with pytest.raises(ShapeError, match=r"packed must be .*got \(33,\)"):
        PackedBitLinear(packed[0], one, 4)
    packed[2, 7] = 0b11_01_01_01
    with pytest.raises(QuantizationError, match=r"packed\[2, 7\].*code 3"):
        PackedBitLinear(packed, one, 10)


def test_it_prints_its_sizes_and_layout():
    assert "in_features=33, out_features=10, bias=False, layout='panel8'" in repr(make())
