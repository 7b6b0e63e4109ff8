import json

import pytest
import torch
from torch import nn

from bitnet_torch.cli.ternary import METHODS
from bitnet_torch.io import ByteTokenizer, load_pretrained, save_pretrained
from bitnet_torch.nn import BitLinear, PackedBitLinear
from bitnet_torch.train import bits_per_byte
from bitnet_torch.train.ternarise import METHODS as ternarise_methods
from bitnet_torch.train.ternarise import ternarise
from tests.bits import same_bits
from tests.io.damage import retensor
from tests.io.gguf.models import small_model
from tests.models.tiny import tiny_model

UP = "model.layers.1.mlp.up_proj"
IDS = torch.arange(6)[None]


@pytest.fixture
def folders(tmp_path):
    for name, linear, format in (
        ("packed", BitLinear, "hf-packed"),
        ("masters", BitLinear, "hf-master"),
        ("float", nn.Linear, "hf-master"),
    ):
        save_pretrained(tiny_model(linear, head_dim=12), tmp_path / name, format)
        (tmp_path / name / "generation_config.json").write_text("{}")
    return tmp_path


def kind_of(folder):
    return type(load_pretrained(folder)[0].get_submodule(UP))


def test_a_checkpoint_goes_to_every_form_and_keeps_its_bits(bitnet, folders):
    expected = load_pretrained(folders / "masters")[0](IDS)
    for source, format, kind in (
        ("masters", "hf-packed", PackedBitLinear),
        ("packed", "hf-master", BitLinear),
        ("packed", "hf-packed", PackedBitLinear),
    ):
        out = folders / f"{source}-{format}"
        ended = bitnet("convert", str(folders / source), str(out), "--format", format)
        assert (ended.status, ended.err) == (0, "")
        assert f"wrote {out} ({format})" in ended.out
        assert "generation_config.json" in ended.out
        assert kind_of(out) is kind
        assert same_bits(load_pretrained(out)[0](IDS), expected)
    there = bitnet(
        "convert", str(folders / "packed"), str(folders / "packed"), "--format=hf-master"
    )
    assert there.status == 0
    assert kind_of(folders / "packed") is BitLinear


def test_a_float_model_becomes_ternary_only_by_name(bitnet, folders):
    source, out = str(folders / "float"), str(folders / "out")
    ended = bitnet("convert", source, out, "--format", "hf-packed")
    assert ended.refused(1, "full precision", "--ternary")
    ended = bitnet("convert", source, out, "--format", "hf-packed", "--ternary", "--json")
    shown = json.loads(ended.out)
    assert (ended.status, shown["format"]) == (0, "hf-packed")
    assert set(shown["files"]) == {"config.json", "generation_config.json", "model.safetensors"}
    assert kind_of(out) is PackedBitLinear
    ended = bitnet("convert", source, out, "--format", "hf-master", "--dtype", "bfloat16")
    assert ended.status == 0
    assert load_pretrained(out)[0].dtype == torch.bfloat16
    ended = bitnet("convert", str(folders / "packed"), out, "--format=hf-packed", "--ternary")
    assert ended.refused(1, "ternary already")


def float_bytes():
    return tiny_model(nn.Linear, vocab_size=256, intermediate_size=84)


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_of_ternarising_reports_and_writes_what_the_library_makes(
    bitnet, folders, tmp_path, method
):
    (tmp_path / "text").write_bytes(bytes(range(32, 96)) * 12)
    save_pretrained(float_bytes(), folders / "bytes", "hf-master", ByteTokenizer())
    text = str(tmp_path / "text")
    options = ["--ternary", "--method", method, "--calibration", text, "--measure", text]
    source, out = str(folders / "bytes"), str(folders / "out")
    ended = bitnet("convert", source, out, "--format", "hf-packed", *options, "--json")
    shown = json.loads(ended.out)["ternary"]
    assert (ended.status, shown["method"], shown["granularity"]) == (0, method, "matrix")
    assert all(0 < layer["output_error"] < 1 for layer in shown["layers"])
    packed, _ = load_pretrained(out)
    ids = torch.tensor(list((tmp_path / "text").read_bytes()))
    for name, model in (("before", float_bytes()), ("after", packed)):
        assert shown[f"bits_per_byte_{name}"] == bits_per_byte(model, ids, 64, 32)
    if method != "gram":
        expected = float_bytes()
        ternarise(expected, method, "matrix", form="packed")
        assert same_bits(packed(IDS), expected(IDS))
    ended = bitnet("convert", source, out, "--format", "hf-master", *options)
    assert ended.status == 0
    assert "bits/byte before" in ended.out
    assert f"{method}, a scale per matrix: 14 layers" in ended.out
    masters, _ = load_pretrained(out)
    assert type(masters.get_submodule(UP)) is BitLinear
    codes = masters.get_submodule(UP).packed().weight
    assert torch.equal(codes, packed.get_submodule(UP).weight)


def test_options_of_ternarising_are_refused_without_it(bitnet, folders, tmp_path):
    source, out = str(folders / "float"), str(folders / "out")
    command = ("convert", source, out, "--format", "hf-packed")
    assert bitnet(*command, "--method", "twn").refused(1, "--method belongs to --ternary")
    ended = bitnet(*command, "--ternary", "--method", "gram")
    assert ended.refused(1, "--method gram needs --calibration")
    save_pretrained(float_bytes(), folders / "bytes", "hf-master", ByteTokenizer())
    (tmp_path / "short").write_bytes(b"short")
    options = ("--ternary", "--calibration", str(tmp_path / "short"))
    ended = bitnet("convert", str(folders / "bytes"), out, "--format=hf-packed", *options)
    assert ended.refused(1, "has 5 tokens", "windows of 64")


def test_the_rules_of_the_command_are_those_with_an_integer_form():
    assert tuple(m for m in ternarise_methods if m != "asymmetric") == METHODS


def test_a_degenerate_checkpoint_is_shown_and_converted_only_by_name(bitnet, folders):
    retensor(folders / "packed", lambda t: t[f"{UP}.weight"].fill_(0x55))
    source, out = str(folders / "packed"), str(folders / "out")
    ended = bitnet("inspect", source)
    assert ended.status == 1
    assert f"DAMAGED model.safetensors: tensor '{UP}.weight' is all zero" in ended.out
    command = ("convert", source, out, "--format", "hf-packed")
    assert bitnet(*command).refused(1, UP, "is all zero", "--allow-degenerate")
    assert bitnet(*command, "--allow-degenerate").status == 0


def test_inspect_shows_the_direction_of_the_scales_and_its_reason(bitnet, folders):
    ended = bitnet("inspect", str(folders / "packed"))
    assert (ended.status, ended.err) == (0, "")
    assert "packed, multiply: linear_class is 'autobitlinear'" in ended.out
    assert "exact float32 scales are carried" in ended.out
    assert f"{UP} 80x48" in ended.out
    assert "generation_config.json" in ended.out
    shown = json.loads(bitnet("inspect", str(folders / "masters"), "--json").out)
    assert (shown["storage"], shown["scale_direction"], shown["flags"]) == ("masters", None, [])
    assert len(shown["layers"]) == 14
    assert "no scale stored" in bitnet("inspect", str(folders / "float")).out
    retensor(folders / "masters", lambda t: t[f"{UP}.weight"].fill_(float("nan")))
    assert f"not quantisable     {UP}" in bitnet("inspect", str(folders / "masters")).out
    assert bitnet("inspect", str(folders / "absent")).refused(1, "does not exist")


@pytest.mark.parametrize("format", ["tq2_0", "tq1_0", "i2_s"])
def test_a_checkpoint_goes_to_gguf_and_back_with_its_bits_and_tokenizer(bitnet, tmp_path, format):
    model = small_model("llama", vocab_size=256)
    save_pretrained(model, tmp_path / "m", tokenizer=ByteTokenizer())
    file = tmp_path / "m.gguf"
    assert bitnet("convert", str(tmp_path / "m"), str(file), "--format", format).status == 0
    assert bitnet("convert", str(file), str(tmp_path / "again"), "--format=hf-packed").status == 0
    again, tokenizer = load_pretrained(tmp_path / "again")
    assert isinstance(tokenizer, ByteTokenizer)
    for name, layer in again.named_modules():
        if isinstance(layer, PackedBitLinear):
            packed = model.get_submodule(name).packed()
            assert torch.equal(layer.weight, packed.weight)
            assert same_bits(layer.weight_scale, packed.weight_scale)
