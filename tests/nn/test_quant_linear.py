"""Any quantiser trains in the integers that it deploys in, or says that it cannot."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bitnet_torch import BitLinear, PackedBitLinear, convert, pack
from bitnet_torch.errors import (
    CheckpointError,
    ConfigurationError,
    QuantizationError,
    ShapeError,
)
from bitnet_torch.io import export_gguf, save_pretrained
from bitnet_torch.nn import HBitLinear, PackedQuantLinear, QuantLinear, set_strength
from bitnet_torch.quant import QUANTIZERS, TWN, Absmean, WeightQuantizer, make_quantizer
from bitnet_torch.quant.activation import quantize_activation4
from bitnet_torch.quant.hadamard import hadamard
from tests.bits import same_bits
from tests.cases import DTYPES, activations, seeds
from tests.models.tiny import tiny_model

TERNARY = [name for name in QUANTIZERS if make_quantizer(name).not_packable is None]
PARTS = [("matrix", None), ("row", None), ("group", 4), ("group", 24)]
STYLES = ("normal", "ties", "mixed", "zeros", "broken")


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from([QuantLinear, HBitLinear]),
    name=st.sampled_from(TERNARY),
    parts=st.sampled_from(PARTS),
    bits=st.sampled_from([4, 8]),
    lead=st.sampled_from([(), (1,), (7,), (2, 3)]),
    k=st.sampled_from([24, 48, 120]),
    n=st.integers(1, 20),
    bias=st.booleans(),
    style=st.sampled_from(STYLES),
    seed=seeds,
)
def test_training_and_packed_forms_have_the_same_bits(
    kind, name, parts, bits, lead, k, n, bias, style, seed
):
    for dtype in DTYPES:
        quantizer = make_quantizer(name, *parts)
        layer = kind(k, n, bias, dtype=dtype, quantizer=quantizer, activation_bits=bits)
        x = activations((*lead, k), dtype, style, seed)
        y = layer(x)
        assert y.dtype == dtype
        packed = layer.packed()
        assert same_bits(y, packed(x))
        plain = kind is QuantLinear and bits == 8 and parts[0] != "group"
        assert isinstance(packed, PackedBitLinear if plain else PackedQuantLinear)


def by_the_formula(layer, x):
    """The group formula in exact integers and single float32 steps."""
    q = layer.quantizer.quantize(layer.weight.detach())
    scale = q.scale if q.scale.dim() == 2 else q.scale.reshape(-1, 1).expand(q.codes.shape[0], 1)
    x = x.reshape(-1, x.shape[-1])
    if layer.activation_bits == 8:
        amax = x.abs().amax(1).clamp_min(1e-5)
        x_q = (x * (torch.ones_like(amax) / amax * 127)[:, None]).round()
        x_scale = amax / torch.full_like(amax, 127.0)
    else:
        x_q, x_scale = quantize_activation4(x)
    total = None
    for g, (xs, ts) in enumerate(
        zip(x_q.chunk(scale.shape[1], 1), q.codes.chunk(scale.shape[1], 1), strict=True)
    ):
        acc = (xs.long() @ ts.long().T).float()
        p = acc * (x_scale[:, None] * scale[:, g])
        total = p if total is None else total + p
    return total


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_the_output_is_the_documented_formula(parts, bits):
    layer = QuantLinear(48, 10, quantizer=TWN(*parts), activation_bits=bits)
    x = torch.randn(5, 48)
    assert same_bits(layer(x), by_the_formula(layer, x))


def test_the_default_quantiser_has_the_bits_of_bit_linear():
    plain = BitLinear(40, 12, bias=True)
    free = QuantLinear(40, 12, bias=True)
    free.load_state_dict(plain.state_dict())
    x = torch.randn(6, 40)
    assert same_bits(free(x), plain(x))
    assert same_bits(free.packed().weight, plain.packed().weight)
    upstream = torch.randn(6, 12)
    grads = []
    for layer in (plain, free):
        leaf = x.clone().requires_grad_()
        layer(leaf).backward(upstream)
        grads.append((leaf.grad, layer.weight.grad, layer.bias.grad))
    assert all(same_bits(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("kind", [QuantLinear, HBitLinear])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradients_are_those_of_the_detach_reference(kind, name, parts, bits):
    layer = kind(48, 8, True, quantizer=make_quantizer(name, *parts), activation_bits=bits)
    x = torch.randn(9, 48, requires_grad=True)
    upstream = torch.randn(9, 8)
    layer(x).backward(upstream)
    got = {n: p.grad.clone() for n, p in layer.named_parameters()} | {"x": x.grad.clone()}
    layer.zero_grad()
    x.grad = None
    rotated = hadamard(x, layer.rotation)
    if bits == 8:
        step = rotated.detach().abs().amax(1, keepdim=True) / 127
        real = (rotated.detach() / step).round() * step
    else:
        codes, step = quantize_activation4(rotated)
        real = codes * step[:, None]
    mixed = rotated + (real - rotated).detach()
    F.linear(mixed, layer.quantizer.mixed(layer.weight), layer.bias).backward(upstream)
    want = {n: p.grad for n, p in layer.named_parameters()} | {"x": x.grad}
    for key, value in want.items():
        # Sums of at most 48 terms, twice, in different orders.
        bound = 2 * 48 * 2**-24 * float(value.abs().max()) * 8
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=bound, msg=key)


@pytest.mark.parametrize("kind", [QuantLinear, HBitLinear])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.999])
def test_the_warm_up_is_the_published_formula(kind, strength):
    layer = kind(48, 8, bias=True)
    layer.strength = strength
    x = torch.randn(9, 48, requires_grad=True)
    upstream = torch.randn(9, 8)
    y = layer(x)
    y.backward(upstream)
    got = x.grad.clone(), layer.weight.grad.clone()
    x.grad, layer.weight.grad = None, None
    rotated = hadamard(x, layer.rotation)
    x_step = rotated.detach().abs().amax(1, keepdim=True) / 127
    w_step = layer.weight.detach().abs().mean()
    q_x = (rotated.detach() / x_step).round() * x_step
    q_w = (layer.weight.detach() / w_step).round().clamp(-1, 1) * w_step
    x_l = rotated + strength * (q_x - rotated).detach()
    w_l = layer.weight + strength * (q_w - layer.weight).detach()
    want = F.linear(x_l, w_l, layer.bias)
    bound = 48 * 2**-22
    torch.testing.assert_close(y, want, rtol=bound, atol=bound)
    want.backward(upstream)
    torch.testing.assert_close(got[0], x.grad, rtol=bound, atol=bound)
    torch.testing.assert_close(got[1], layer.weight.grad, rtol=bound, atol=bound)


def test_without_strength_nothing_is_quantised():
    layer = QuantLinear(48, 8)
    layer.strength = 0.0
    x = torch.randn(9, 48)
    assert same_bits(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strength": 0.25}, r"is in its warm-up \(strength 0.25\)"),
        ({"quantizer": "seq-2"}, "is for training only: its quantizer seq-2 has the codes -3, -1"),
    ],
)
def test_what_has_no_packed_form_is_refused_by_name_and_left_whole(change, says):
    layer = QuantLinear(8, 4, quantizer=make_quantizer(change.get("quantizer", "absmean")))
    layer.strength = change.get("strength", 1.0)
    with pytest.raises(QuantizationError, match=says):
        layer.packed()
    with pytest.raises(QuantizationError, match=says):
        layer.codes()
    model = nn.Sequential(BitLinear(8, 8), layer)
    with pytest.raises(QuantizationError, match=f"1: the layer {says}"):
        pack(model)
    assert type(model[0]) is BitLinear


def test_four_levels_train_in_floats():
    layer = QuantLinear(48, 8, quantizer=make_quantizer("seq-2", "row"))
    x = torch.randn(5, 48)
    step = x.abs().amax(1, keepdim=True) / 127
    want = F.linear((x / step).round() * step, layer.quantizer.quantize(layer.weight).dense())
    torch.testing.assert_close(layer(x), want, rtol=0, atol=48 * 2**-22)
    layer(x).sum().backward()
    assert layer.quantizer.alpha.grad.shape == (8,)


def block_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8, bias=False))


def test_convert_gives_each_layer_a_quantiser_of_its_own():
    model = block_model()
    weights = [model[0].weight, model[2].weight]
    report = convert(model, quantizer=make_quantizer("lsq", "row"), rotate=("2",))
    assert report.converted == ("0", "2")
    assert type(model[0]) is QuantLinear
    assert type(model[2]) is HBitLinear
    assert [model[0].weight, model[2].weight] == weights or all(
        a is b for a, b in zip([model[0].weight, model[2].weight], weights, strict=True)
    )
    assert model[0].quantizer is not model[2].quantizer
    assert model[0].quantizer.alpha.shape == (16,)
    x = torch.randn(3, 16)
    want = model(x)
    report = pack(model)
    assert same_bits(model(x), want)
    assert [layer.packed_bytes for layer in report.packed] == [64, 32]


@pytest.mark.parametrize(
    ("settings_", "error", "says"),
    [
        ({"quantizer": Absmean("group", 5)}, ShapeError, "0: group_size must divide K"),
        ({"activation_bits": 5}, ConfigurationError, "activation_bits must be one of"),
        ({"granularity": "column"}, ConfigurationError, "granularity must be one of"),
        (
            {"granularity": "row", "quantizer": Absmean()},
            ConfigurationError,
            "beside a quantizer, which has its own: 'matrix'",
        ),
        ({"rotate": "2"}, ConfigurationError, "rotate must be a sequence of patterns, got '2'"),
    ],
)
def test_settings_that_do_not_fit_change_no_layer(settings_, error, says):
    model = block_model()
    with pytest.raises(error, match=says):
        convert(model, **settings_)
    assert type(model[0]) is nn.Linear


def test_an_odd_width_cannot_be_rotated():
    model = nn.Sequential(nn.Linear(16, 15), nn.Linear(15, 4))
    with pytest.raises(ConfigurationError, match="1: a Hadamard transform needs an even number"):
        convert(model, rotate=("1",))
    assert type(model[0]) is nn.Linear


def test_full_strength_makes_plain_layers_of_those_that_are():
    model = block_model()
    convert(model, quantizer=Absmean("row"), rotate=("2",))
    assert set_strength(model, 0.5) == 2
    assert model[0].strength == model[2].strength == 0.5
    assert "strength=0.5" in repr(model[0])
    x, weight = torch.randn(3, 16), model[0].weight
    assert set_strength(model, 1.0) == 2
    assert type(model[0]) is BitLinear
    assert model[0].weight is weight
    assert model[0].granularity == "row"
    assert "quantizer" not in dict(model.named_modules())
    assert type(model[2]) is HBitLinear
    want = model(x)
    pack(model)
    assert same_bits(model(x), want)
    assert set_strength(model, 0.5) == 0
    four = QuantLinear(16, 8, activation_bits=4)
    set_strength(four, 1.0)
    assert type(four) is QuantLinear
    with pytest.raises(ConfigurationError, match="strength must lie in"):
        set_strength(model, 1.5)


def test_packed_forms_survive_copy_state_dict_and_casts():
    layer = HBitLinear(48, 10, bias=True, quantizer=TWN("group", 12), activation_bits=4)
    packed, x = layer.packed(), torch.randn(5, 48)
    want = packed(x)
    assert same_bits(copy.deepcopy(packed)(x), want)
    twin = HBitLinear(48, 10, bias=True, quantizer=TWN("group", 12), activation_bits=4).packed()
    twin.load_state_dict(packed.state_dict())
    assert same_bits(twin(x), want)
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    assert same_bits(torch.load(buffer, weights_only=False)(x), want)
    scale = packed.weight_scale
    assert same_bits(packed.to(torch.bfloat16).weight_scale, scale)
    assert scale.shape == (10, 4)
    codes, _ = layer.codes()
    assert same_bits(packed.weight, codes)
    assert "rotation=16" in repr(packed)
    with pytest.raises(QuantizationError, match="has no latent weights"):
        packed.latent_weight()


def test_groups_that_do_not_divide_the_columns_are_refused():
    packed = torch.full((1, 10), 0b01010101, dtype=torch.uint8)
    with pytest.raises(ShapeError, match="3 groups, which do not divide K=10"):
        PackedQuantLinear(packed, torch.ones(4, 3), 4)


def test_autocast_casts_the_input_of_both_forms():
    layer, x = HBitLinear(32, 8), torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert same_bits(y, layer.packed()(x))


def one_layer():
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64}
    return tiny_model(
        **sizes, dtype=torch.float32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip


def test_a_packable_quantiser_is_stored_with_its_own_codes(tmp_path):
    import bitnet_torch as bt

    model = one_layer()
    convert(model, quantizer=make_quantizer("seq"))
    ids = torch.randint(256, (1, 9))
    want = model(ids)
    save_pretrained(model, tmp_path / "m")
    assert same_bits(bt.load(tmp_path / "m").model(ids), want)
    with pytest.raises(CheckpointError, match="q_proj has the quantizer seq, which the layout"):
        save_pretrained(model, tmp_path / "n", format="hf-master")


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"rotate": ("down_proj",)}, "down_proj rotates its input in blocks of 64, which the"),
        ({"activation_bits": 4}, "q_proj has 4-bit activations, which the layout"),
        ({"quantizer": Absmean("group", 16)}, "q_proj has a scale per group, which the layout"),
        ({"quantizer": make_quantizer("seq-2")}, "q_proj is for training only"),
    ],
)
def test_what_a_file_cannot_say_is_refused_by_name(settings_, says, tmp_path):
    model = one_layer()
    convert(model, **settings_)
    for packed in (False, True):
        if packed and "training only" not in says:
            pack(model)
        with pytest.raises(CheckpointError, match=says):
            save_pretrained(model, tmp_path / "m")
        with pytest.raises(CheckpointError, match=says):
            export_gguf(model, tmp_path / "m.gguf", type="I2_S")


def test_a_whole_model_with_groups_and_rotation_packs_to_the_same_logits():
    model = one_layer()
    convert(model, quantizer=TWN("group", 16), rotate=("o_proj", "down_proj"), activation_bits=4)
    ids = torch.randint(256, (2, 11))
    want = model(ids)
    report = pack(model)
    assert len(report.packed) == 7
    assert same_bits(model(ids), want)


def test_an_average_of_latent_weights_is_packed_with_a_warning():
    model = nn.Sequential(BitLinear(8, 8))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with pytest.warns(UserWarning, match="AveragedModel averages latent weights"):
        pack(average)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(model)


def test_a_subclass_of_somebody_else_is_not_packed():
    class Own(BitLinear):
        def forward(self, input):
            return super().forward(input) + 1

    model = nn.Sequential(Own(8, 8), BitLinear(8, 8))
    assert [s.name for s in pack(model).skipped] == ["0"]


def test_quantisers_are_modules_whose_parameters_are_the_layers():
    layer = QuantLinear(8, 4, quantizer=make_quantizer("lsq"))
    assert isinstance(layer.quantizer, WeightQuantizer)
    assert set(dict(layer.named_parameters())) == {"weight", "quantizer.alpha"}
