"""A checkpoint in several files: complete and consistent, or one error that names the culprit."""

import contextlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io import json_file, load_pretrained, save_pretrained
from bitnet_torch.io.tensor_file import open_tensors
from bitnet_torch.nn import BitLinear
from tests.bits import same_bits
from tests.io.damage import reconfigure, retensor, shard
from tests.models.tiny import tiny_model

IDS = torch.arange(10)[None]
SIZES = {"hidden_size": 8, "intermediate_size": 12, "head_dim": 2}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact") / "m"
    save_pretrained(tiny_model(BitLinear, **SIZES), folder)
    return folder


@pytest.fixture
def folder(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "m")


@pytest.fixture
def parts(folder):
    return shard(folder)


def index_of(folder):
    return folder / "model.safetensors.index.json"


def remap(folder, edit):
    index = json.loads(index_of(folder).read_text())
    edit(index["weight_map"])
    index_of(folder).write_text(json.dumps(index))


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.usefixtures("parts")
def test_parts_make_the_whole_with_its_exact_scales(folder, intact):
    assert same_bits(load_pretrained(folder)[0](IDS), load_pretrained(intact)[0](IDS))


@pytest.mark.usefixtures("parts")
def test_one_whole_file_goes_before_an_index(folder, intact):
    shutil.copy(intact / "model.safetensors", folder)
    index_of(folder).write_text("nonsense")
    assert same_bits(load_pretrained(folder)[0](IDS), load_pretrained(intact)[0](IDS))


def test_saving_over_parts_leaves_none_of_them(folder, parts):
    model, _ = load_pretrained(folder)
    save_pretrained(model, folder)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert same_bits(load_pretrained(folder)[0](IDS), model(IDS))


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "C:model.safetensors",
        ".hidden.safetensors",
        "nul\0.safetensors",
        "model.bin",
        3,
        None,
        ["model-00001-of-00003.safetensors"],
    ],
)
@pytest.mark.usefixtures("parts")
def test_a_name_that_leads_out_of_the_folder_is_refused(folder, name):
    remap(folder, lambda names: names.__setitem__("model.norm.weight", name))
    refused(folder, r"'model.norm.weight' is said to be in .* not the plain name")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": []}', '{"weight_map": {}}', "1"])
@pytest.mark.usefixtures("parts")
def test_a_damaged_index_is_named(folder, content):
    index_of(folder).write_text(content)
    refused(folder, "index.json")


def test_an_index_too_large_to_be_one_is_not_read(folder, parts, monkeypatch):
    monkeypatch.setattr(json_file, "_LARGEST", 2000)
    refused(folder, r"it has \d+ bytes, more than 2000")


def test_a_missing_part_is_named(folder, parts):
    (folder / parts[1]).unlink()
    refused(folder, f"{parts[1]}: no such file")


def test_a_tensor_that_is_not_where_the_index_says_is_named_with_the_part(folder, parts):
    remap(folder, lambda names: names.__setitem__("model.extra", parts[2]))
    refused(folder, f"{parts[2]}: tensor 'model.extra' is missing; .*index.json says")


def test_a_tensor_that_the_index_does_not_know_is_named_with_the_part(folder, parts):
    tensors = load_file(folder / parts[1])
    tensors |= {"model.extra": torch.zeros(2), "model.other": torch.zeros(2)}
    save_file(tensors, folder / parts[1])
    refused(folder, rf"{parts[1]}: tensor 'model.extra' is not in .*index.json \(and 1 more\)")


@pytest.mark.usefixtures("parts")
def test_a_tensor_under_two_names_is_named(folder):
    def rename(tensors):
        tensors["model.layers.0.mlp.ffn_layernorm.weight"] = torch.ones(12)

    shutil.rmtree(folder)
    save_pretrained(tiny_model(BitLinear, **SIZES), folder)
    retensor(folder, rename)
    refused(folder, r"ffn_sub_norm.weight' is also in model.safetensors as .*ffn_layernorm")


def test_a_pickle_is_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin is a pickle")


def test_a_head_stored_beside_its_tied_embedding_must_be_the_same(tmp_path):
    folder = tmp_path / "m"
    model = tiny_model(BitLinear, tie_word_embeddings=True, **SIZES)
    save_pretrained(model, folder)

    def copy(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    retensor(folder, copy, keep_scales=True)
    assert same_bits(load_pretrained(folder)[0](IDS), model(IDS))
    retensor(folder, lambda t: t["lm_head.weight"].view(-1)[7].add_(1e-3), keep_scales=True)
    refused(folder, r"'lm_head.weight' differs from 'model.embed_tokens.weight'")
    retensor(folder, lambda t: t.update({"lm_head.weight": torch.ones(3, 8)}), keep_scales=True)
    refused(folder, r"'lm_head.weight' has shape \(3, 8\)")


def test_packed_layers_need_rows_that_fill_their_bytes(tmp_path):
    folder = tmp_path / "m"
    save_pretrained(tiny_model(BitLinear, **SIZES), folder)
    reconfigure(folder, lambda config: config.update(intermediate_size=13))
    refused(folder, "has 13 outputs; the packed layout needs a multiple of 4")


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(folder):
    path = folder / "model.safetensors"
    with open_tensors(path) as file:
        os.truncate(path, path.stat().st_size - 4)
        last = max(file._starts, key=file._starts.get)
        with pytest.raises(CheckpointError, match=f"the file ends inside tensor '{last}'"):
            file.read(last)


def header(length, text=b""):
    return length.to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header(2**63),
        header(2**64 - 1, b"{}"),
        header(100_000_001, b"{}"),
        header(2, b"[]"),
        header(200_000, b"[" * 200_000),
        header(200_007, b'{"a": ' + b"[" * 200_000 + b"}"),
        header(2, b'{"'),
        header(4, b"\xff\xfe{}"),
    ],
)
def test_a_header_made_to_do_harm_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors: cannot be read")


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F64", "X", 3, None]),
        "shape": st.lists(st.integers(-1, 2**63), max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(-1, 2**63), max_size=3) | st.none(),
    }
)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_entry_of_a_header_is_read_or_refused(intact, tmp_path_factory, data):
    whole = (intact / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8 : 8 + size])
    name = data.draw(st.sampled_from(sorted(entries)))
    entries[name] = data.draw(ENTRY | st.none() | st.text(max_size=3))
    text = json.dumps(entries).encode()
    folder = tmp_path_factory.mktemp("entry")
    shutil.copy(intact / "config.json", folder)
    (folder / "model.safetensors").write_bytes(header(len(text), text) + whole[8 + size :])
    with contextlib.suppress(CheckpointError):
        assert same_bits(load_pretrained(folder)[0](IDS), load_pretrained(intact)[0](IDS))
