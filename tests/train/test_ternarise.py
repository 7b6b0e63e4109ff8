"""Whole models ternarised after training, in each of the three forms."""

import copy
import json

import pytest
import torch
from torch import nn

from bitnet_torch.errors import ConfigurationError, QuantizationError, ShapeError
from bitnet_torch.nn import BitLinear, PackedBitLinear, convert, pack
from bitnet_torch.ops import unpack_codes
from bitnet_torch.quant import make_quantizer, quantize_on_data, weight_error
from bitnet_torch.quant.gram import gram_matrices
from bitnet_torch.train.ternarise import DATA_FREE, METHODS, ternarise
from tests.bits import same_bits
from tests.models.tiny import tiny_model

UP = "model.layers.1.mlp.up_proj"
IDS = torch.arange(12).reshape(2, 6)
PARTS = [("matrix", None), ("row", None), ("group", 8)]


def float_model():
    return tiny_model(nn.Linear)


@pytest.mark.parametrize("parts", PARTS, ids=[p[0] for p in PARTS])
@pytest.mark.parametrize("method", METHODS)
def test_float_form_holds_what_the_rule_gives_and_the_head_stays(method, parts):
    before, model = float_model(), float_model()
    report = ternarise(model, method, parts[0], group_size=parts[1], calibration=[IDS])
    old, new = (m.get_submodule(UP).weight.detach() for m in (before, model))
    if method == "gram":
        gram = gram_matrices(before, {UP: before.get_submodule(UP)}, [IDS])[UP]
        expected = quantize_on_data(old, gram, *parts)
    else:
        expected = make_quantizer(method, *parts).quantize(old)
    assert same_bits(new, expected.dense())
    assert same_bits(model.lm_head.weight.detach(), before.lm_head.weight.detach())
    (row,) = (layer for layer in report.layers if layer.name == UP)
    assert row.error == weight_error(old, expected.dense())
    assert row.zeros == expected.codes.eq(0).sum().item() / expected.codes.numel()
    assert 0 < row.output_error < 1
    assert [s.name for s in report.skipped] == ["lm_head"]
    assert f"{row.error.relative_error:.4f}" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["name"] == report.layers[0].name


@pytest.mark.parametrize("granularity", ["matrix", "row"])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "asymmetric"])
def test_packed_and_latent_form_have_the_codes_and_the_bits_of_each_other(method, granularity):
    dense, packed, latent = float_model(), float_model(), float_model()
    parameters = dict(latent.named_parameters())
    for model, form in ((dense, "float"), (packed, "packed"), (latent, "latent")):
        ternarise(model, method, granularity, form=form, calibration=[IDS])
    layer = packed.get_submodule(UP)
    assert type(layer) is PackedBitLinear
    assert type(latent.get_submodule(UP)) is BitLinear
    assert all(parameters[name] is p for name, p in latent.named_parameters())
    scale = layer.weight_scale if granularity == "matrix" else layer.weight_scale[:, None]
    codes = unpack_codes(layer.weight, layer.out_features)
    assert same_bits(dense.get_submodule(UP).weight.detach(), codes * scale)
    before = latent(IDS).detach()
    pack(latent)
    assert same_bits(latent(IDS), before)
    repacked = latent.get_submodule(UP)
    assert same_bits(repacked.weight, layer.weight)
    # Not every float32 is the mean of float32 numbers; where one is not, the next one is taken.
    apart = repacked.weight_scale.view(torch.int32) - layer.weight_scale.view(torch.int32)
    assert bool((apart.abs() <= 1).all())


def test_absmean_of_a_matrix_is_what_convert_and_pack_make():
    model, converted = float_model(), float_model()
    ternarise(model, "absmean", "matrix", form="packed")
    convert(converted)
    pack(converted)
    assert same_bits(model(IDS), converted(IDS))


def test_the_latent_weights_of_absmean_are_the_weights_themselves():
    model, converted = float_model().to(torch.bfloat16), float_model().to(torch.bfloat16)
    ternarise(model, "absmean", "matrix", form="latent")
    convert(converted)
    for (name, kept), other in zip(model.named_parameters(), converted.parameters(), strict=True):
        assert same_bits(kept.detach(), other.detach()), name
    assert type(model.get_submodule(UP)) is BitLinear


def test_calibrated_codes_change_the_outputs_least():
    reports = {
        m: ternarise(float_model(), m, "row", calibration=[IDS]) for m in ("exact-l2", "gram")
    }
    total = {m: sum(layer.output_error for layer in r.layers) for m, r in reports.items()}
    assert total["gram"] < total["exact-l2"]
    errors = [[layer.error.relative_error for layer in r.layers] for r in reports.values()]
    assert all(plain <= data for plain, data in zip(*errors, strict=True))


def test_a_layer_in_two_places_is_packed_once_and_a_bias_is_kept():
    inner = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": inner, "b": inner, "c": nn.Linear(8, 4)})
    bias = inner.bias.detach().clone()
    report = ternarise(model, form="packed", exclude=("c",))
    assert model["a"] is model["b"]
    assert type(model["a"]) is PackedBitLinear
    assert same_bits(model["a"].bias, bias)
    assert [layer.name for layer in report.layers] == ["a"]
    assert type(model["c"]) is nn.Linear


def test_without_data_nothing_is_said_of_outputs():
    report = ternarise(float_model())
    assert {layer.output_error for layer in report.layers} == {None}


def test_the_error_of_outputs_is_relative_to_the_outputs_on_the_data():
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    x, w = torch.randn(40, 6), model[0].weight.detach().clone()
    (layer,) = ternarise(model, calibration=[x]).layers
    outputs, change = x @ w.T, x @ (w - model[0].weight.detach()).T
    # Sums of 40 products in float32.
    want = (change.norm() / outputs.norm()).item()
    assert layer.output_error == pytest.approx(want, rel=40 * 2**-22)


def test_an_error_leaves_the_model_as_it_was():
    model = float_model()
    with torch.no_grad():
        model.get_submodule(UP).weight[1, 2] = float("nan")
    before = copy.deepcopy(model)
    with pytest.raises(QuantizationError, match=rf"{UP}: .*\[1, 2\]"):
        ternarise(model, form="packed")
    for (name, kept), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert same_bits(kept.detach(), old.detach()), name


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"method": "gptq"}, "got 'gptq'"),
        ({"form": "dense"}, "form must be one of"),
        ({"method": "gram"}, "'gram' needs calibration data"),
        ({"method": "asymmetric", "form": "packed"}, "form must be 'float', got 'packed': asymm"),
        ({"granularity": "group", "group_size": 8, "form": "packed"}, "not per group"),
        ({"granularity": "group"}, "group_size must be given"),
        ({"exclude": "lm_head"}, "exclude must be a sequence"),
        ({"exclude": ("*",)}, r"no nn\.Linear"),
    ],
)
def test_what_cannot_be_done_is_refused(wanted, message):
    with pytest.raises(ConfigurationError, match=message):
        ternarise(float_model(), **wanted)


def test_other_refusals_name_what_is_wrong():
    with pytest.raises(ShapeError, match="group_size=5"):
        ternarise(float_model(), granularity="group", group_size=5)
    with pytest.raises(ConfigurationError, match="itself the layer"):
        ternarise(nn.Linear(4, 4), form="packed")
    with pytest.raises(ConfigurationError, match=r"must be float32 .* got torch\.bfloat16"):
        ternarise(float_model().to(torch.bfloat16), form="latent")


def test_every_data_free_method_is_a_quantiser():
    assert [make_quantizer(name).name for name in DATA_FREE] == list(DATA_FREE)
