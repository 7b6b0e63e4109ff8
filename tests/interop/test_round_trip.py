"""Ours -> Hugging Face's layout -> transformers, and back to ours, for every family."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import bitnet_torch as bt
from bitnet_torch.errors import QuantizationError
from bitnet_torch.nn import NormedLinear, PackedBitLinear
from tests.bits import same_bits
from tests.interop.compare import TIGHT, check_loosely, prompt_without_ties, quantised
from tests.interop.families import FAMILIES, make_folder, reference

IDS = torch.arange(2 * 24).reshape(2, 24) * 11 % 96
TERNARY = [f for f in FAMILIES if f.quantization is not None]


def codes_and_scales(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, PackedBitLinear)}


def without_exact_scales(folder):
    """Make a folder that has only what the layout itself stores."""
    values = json.loads((folder / "config.json").read_text())
    values["bitnet_torch"].pop("exact_scales")
    (folder / "config.json").write_text(json.dumps(values))
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("family", TERNARY, ids=str)
def test_packed_by_us_it_runs_in_transformers_and_comes_back_to_the_bit(tmp_path, family):
    ours = bt.load(make_folder(tmp_path / "in", family)).model
    logits = ours(IDS)
    if not family.packed:
        bt.pack(ours)
        assert same_bits(ours(IDS), logits)
    bt.save_pretrained(ours, tmp_path / "out", format="hf-packed")
    again = bt.load(tmp_path / "out").model
    before, after = codes_and_scales(ours), codes_and_scales(again)
    assert list(before) == list(after)
    for name, layer in before.items():
        assert same_bits(after[name].weight, layer.weight)
        assert same_bits(after[name].weight_scale.reshape(()), layer.weight_scale.reshape(()))
    assert same_bits(again(IDS), logits)
    theirs = reference(tmp_path / "out")
    assert len(quantised(theirs)) == len(before)
    # The layout rounds a scale to bfloat16: half an ulp, 2^-9 of each layer's output.
    check_loosely(theirs(IDS).logits, logits)
    without_exact_scales(tmp_path / "out")
    rounded = bt.load(tmp_path / "out").model
    ids, exact, _ = prompt_without_ties(theirs)
    assert (rounded(ids) - exact).abs().max() <= TIGHT


NO_MASTERS = r"model\.layers\.\d\.\S+_proj: no float32 weights"


def divides(family):
    return family.packed and family.quantization.get("linear_class") != "autobitlinear"


def has_masters(model):
    """Return whether every scale is the rounded mean of some sum: a reciprocal need not be."""
    for layer in codes_and_scales(model).values():
        scale, numel = layer.weight_scale.reshape(()), layer.in_features * layer.out_features
        nearest = (scale.double() * numel).float()
        around = [nearest, *(nearest.nextafter(torch.tensor(d)) for d in (0.0, float("inf")))]
        if scale not in [total / numel for total in around]:
            return False
    return True


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_masters_written_by_us_run_in_transformers_and_come_back_to_the_bit(tmp_path, family):
    ours = bt.load(make_folder(tmp_path / "in", family)).model
    logits = ours(IDS)
    if not has_masters(ours):
        assert divides(family)
        with pytest.raises(QuantizationError, match=NO_MASTERS):
            bt.save_pretrained(ours, tmp_path / "out", format="hf-master")
        return
    bt.save_pretrained(ours, tmp_path / "out", format="hf-master")
    assert same_bits(bt.load(tmp_path / "out").model(IDS), logits)
    theirs = reference(tmp_path / "out")
    ids, exact, _ = prompt_without_ties(theirs)
    assert (ours(ids) - exact).abs().max() <= TIGHT


def test_the_norm_inside_a_layer_is_written_for_all_layers_or_refused(tmp_path):
    family = next(f for f in FAMILIES if f.name == "llama-inner-norm-divide")
    model = bt.load(make_folder(tmp_path / "in", family)).model
    model.model.layers[0].mlp.up_proj = model.model.layers[0].mlp.up_proj.linear
    with pytest.raises(bt.BitNetError, match=r"layers.0.mlp.up_proj.* is an exception"):
        bt.save_pretrained(model, tmp_path / "out")
    family = next(f for f in FAMILIES if f.name == "llama-inner-norm-online")
    model = bt.load(make_folder(tmp_path / "in2", family)).model
    norms = [m for m in model.modules() if isinstance(m, NormedLinear)]
    norms[3].rms_norm.eps = 1e-3
    with pytest.raises(bt.BitNetError, match=r"there are \[1e-05, 0.001\]"):
        bt.save_pretrained(model, tmp_path / "out", format="hf-master")


FILES = {
    "tokenizer.json": "{}",
    "generation_config.json": '{"eos_token_id": [2, 7]}',
    "chat_template.jinja": "{{ messages }}",
    "notes.txt": "mine",
}


def test_what_belongs_to_a_model_travels_along(tmp_path):
    folder = make_folder(tmp_path / "in", FAMILIES[0])
    model = bt.load(folder).model
    for name, text in FILES.items():
        (folder / name).write_text(text)
    bt.save_pretrained(model, tmp_path / "out", format="hf-master")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*FILES, "config.json", "model.safetensors"} - {"notes.txt"}
    for name in names & set(FILES):
        assert (tmp_path / "out" / name).read_text() == FILES[name]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_a_model_whose_folder_is_gone_is_saved_without_its_files(tmp_path, caplog):
    folder = make_folder(tmp_path / "in", FAMILIES[0])
    model = bt.load(folder).model
    folder.rename(tmp_path / "elsewhere")
    bt.save_pretrained(model, tmp_path / "out", format="hf-master")
    assert "is gone" in caplog.text
    assert bt.load(tmp_path / "out").model.config == model.config
