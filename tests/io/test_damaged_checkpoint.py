"""Damaged folders: each gives one clear BitNetError, or was not damaged where it matters."""

import contextlib
import json
import shutil
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io import load_pretrained, save_pretrained
from bitnet_torch.io.scales import METADATA_KEY
from bitnet_torch.nn import BitLinear
from tests.bits import same_bits
from tests.models.tiny import tiny_model

MODULE = "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact") / "m"
    model = tiny_model(
        BitLinear, num_hidden_layers=2, hidden_size=8, intermediate_size=12, head_dim=2
    )
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def folder(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "m")


def weights(folder):
    return folder / "model.safetensors"


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def change(folder, edit, metadata=None):
    with safe_open(weights(folder), "pt") as file:
        kept = file.metadata()
    tensors = load_file(weights(folder))
    edit(tensors)
    save_file(tensors, weights(folder), {**kept, **(metadata or {})})


def test_a_missing_folder_or_file_says_so(folder, tmp_path):
    refused(tmp_path / "absent", "absent does not exist")
    refused(weights(folder), "is not a folder")
    weights(folder).rename(folder / "elsewhere")
    refused(folder, "model.safetensors: no such file")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "weight_map must be an object")
    (folder / "config.json").unlink()
    refused(folder, r"config.json: no such file")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model_type": "bitnet"}']
)
def test_a_damaged_config_says_so(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config.json: ")


def test_a_file_cut_anywhere_is_refused(folder):
    whole = weights(folder).read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for size in {*range(20), *range(0, header, 97), header, *range(header, len(whole), 211)}:
        weights(folder).write_bytes(whole[:size])
        refused(folder, "cannot be read")
    weights(folder).write_bytes(whole + b"\0")
    refused(folder, "cannot be read")


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_flipped_header_byte_is_refused_or_harmless(intact, tmp_path_factory, data):
    whole = bytearray(weights(intact).read_bytes())
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    whole[data.draw(st.integers(0, header - 1))] ^= data.draw(st.integers(1, 255))
    folder = tmp_path_factory.mktemp("flip")
    shutil.copy(intact / "config.json", folder)
    weights(folder).write_bytes(whole)
    with contextlib.suppress(CheckpointError):
        same_model(load_pretrained(folder)[0], load_pretrained(intact)[0])


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_flipped_code_or_scale_is_refused(intact, tmp_path_factory, data):
    folder = shutil.copytree(intact, tmp_path_factory.mktemp("flip") / "m")
    name = f"{MODULE}.{data.draw(st.sampled_from(['weight', 'weight_scale']))}"
    tensors = load_file(weights(intact))
    raw = tensors[name].view(torch.uint8)
    place = data.draw(st.integers(0, raw.numel() - 1))
    bit = data.draw(st.integers(0, 7))

    def flip(tensors):
        tensors[name].view(torch.uint8).view(-1)[place] ^= 1 << bit

    change(folder, flip)
    refused(folder, MODULE.replace(".", r"\."))


def same_model(a, b):
    ids = torch.arange(10)[None]
    assert same_bits(a(ids), b(ids))


def test_a_missing_tensor_is_named(folder):
    change(folder, lambda tensors: tensors.pop(f"{MODULE}.weight_scale"))
    refused(folder, rf"tensor '{MODULE}.weight_scale' is missing")


def test_an_unexpected_tensor_is_named(folder):
    change(folder, lambda tensors: tensors.update({"model.extra": torch.zeros(1)}))
    refused(folder, "tensor 'model.extra' is not part of this model")


def test_a_wrong_shape_is_named_with_both(folder):
    change(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(9)}))
    refused(folder, r"'model.norm.weight' has shape \(9,\), the model needs \(8,\)")


@pytest.mark.parametrize(
    ("name", "dtype", "match"),
    [
        (f"{MODULE}.weight", torch.int8, "is I8"),
        (f"{MODULE}.weight", torch.float32, r"is torch.float32, the model needs torch.uint8"),
        ("model.norm.weight", torch.uint8, r"is torch.uint8, the model needs torch.float32"),
        ("model.norm.weight", torch.float64, "is F64"),
        ("model.embed_tokens.weight", torch.int32, "is I32"),
    ],
)
def test_a_wrong_dtype_is_named(folder, name, dtype, match):
    change(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(folder, match)


def test_code_3_is_named_with_its_place(folder):
    def corrupt(tensors):
        tensors[f"{MODULE}.weight"][0, 5] |= 0b1100

    change(folder, corrupt)
    refused(folder, f"{MODULE}.weight and its exact scale do not belong together")
    save_file(load_file(weights(folder)), weights(folder), {"format": "pt"})
    refused(folder, "the exact scales and the packed layers differ")
    config = json.loads((folder / "config.json").read_text())
    del config["bitnet_torch"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, rf"{MODULE}: packed\[0, 5\] .* code 3")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_no_scale_is_named(folder, value):
    def store(tensors):
        tensors[f"{MODULE}.weight_scale"].fill_(value)

    change(folder, store)
    refused(folder, rf"{MODULE}.weight_scale is .*finite and positive")


def entry_of(folder):
    with safe_open(weights(folder), "pt") as file:
        return json.loads(file.metadata()[METADATA_KEY])


def test_an_exact_scale_that_does_not_round_to_the_stored_one_is_refused(folder):
    entry = entry_of(folder)
    entry[MODULE][0] = "3f800000"
    change(folder, lambda tensors: None, {METADATA_KEY: json.dumps(entry)})
    refused(folder, rf"{MODULE}.weight_scale means .* exact scale beside it is 1.0")


def test_an_exact_scale_changed_below_the_rounding_is_refused(folder):
    entry = entry_of(folder)
    entry[MODULE][0] = f"{int(entry[MODULE][0], 16) ^ 1:08x}"
    change(folder, lambda tensors: None, {METADATA_KEY: json.dumps(entry)})
    refused(folder, f"{MODULE}.weight and its exact scale do not belong together")


def test_exact_scales_of_other_layers_are_refused(folder):
    entry = entry_of(folder)
    del entry[MODULE]
    change(folder, lambda tensors: None, {METADATA_KEY: json.dumps(entry)})
    refused(folder, f"differ by '{MODULE}'")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"a": 1}', '{"a": ["zz", ""]}', '{"a": ["7fc00000", "x"]}']
)
def test_damaged_metadata_is_refused(folder, text):
    change(folder, lambda tensors: None, {METADATA_KEY: text})
    refused(folder, "is damaged|differ by")
