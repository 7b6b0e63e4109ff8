"""`bitnet demo`: real figures, and a verdict that can be no."""

import json
import shutil

import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.cli.exactness import compare_forms, training_form
from bitnet_torch.nn import BitLinear, PackedBitLinear
from tests.bits import same_bits


@pytest.fixture
def bundled(checkpoint, monkeypatch):
    monkeypatch.setattr("bitnet_torch.assets.bundled_model", lambda: checkpoint)
    return checkpoint


def test_the_demo_shows_text_speed_memory_and_exactness(bitnet, bundled):
    ended = bitnet("demo", "--prompt", "O,", "--tokens", 12)
    assert (ended.status, ended.err) == (0, "")
    head, _, rest = ended.out.partition("\n\nO,")
    assert "kernels" in head
    assert "12 new tokens" in rest
    assert rest.rstrip().endswith("the same bits")


def test_its_figures_are_sums_over_the_layers(bitnet, bundled):
    shown = json.loads(bitnet("demo", "--tokens", 5, "--json").out)
    layers = [m for m in bt.load(bundled).model.modules() if isinstance(m, PackedBitLinear)]
    weights = sum(m.in_features * m.out_features for m in layers)
    assert shown["ternary_weights"] == weights
    assert shown["float16_bytes"] == 2 * weights
    assert shown["packed_bytes"] == sum(m.weight.nbytes + 4 for m in layers)
    assert shown["logits_compared"] == 256 * (shown["prompt_tokens"] + 5)
    assert shown["logits_different"] == 0


def test_the_same_seed_gives_the_same_text(bitnet, bundled):
    first, second, other = (
        json.loads(bitnet("demo", "--tokens", 20, "--seed", seed, "--json").out)["text"]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_a_difference_is_an_error(bitnet, bundled, monkeypatch):
    def off_by_one_bit(layer):
        weight = torch.zeros(layer.out_features, layer.in_features)
        weight[0, 0] = layer.weight_scale
        return weight

    monkeypatch.setattr(PackedBitLinear, "latent_weight", off_by_one_bit)
    ended = bitnet("demo", "--tokens", 5)
    assert ended.status == 1
    assert "DIFFERENT" in ended.out
    assert ended.err.startswith("bitnet: error: ")
    assert "differ from the training form" in ended.err


def test_the_training_form_is_made_of_bit_linears_that_pack_to_the_same_codes(bundled):
    model = bt.load(bundled).model
    twin = training_form(model)
    for name, layer in model.named_modules():
        if isinstance(layer, PackedBitLinear):
            other = twin.get_submodule(name)
            assert type(other) is BitLinear
            assert same_bits(other.packed().weight, layer.weight)
            assert same_bits(
                other.packed().weight_scale.reshape(-1), layer.weight_scale.reshape(-1)
            )
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert same_bits(model(ids), twin(ids))


def test_rows_and_biases_survive_the_comparison():
    layer = BitLinear(24, 10, bias=True, granularity="row")
    model = torch.nn.Sequential(torch.nn.Embedding(16, 24), layer.packed())
    compared = compare_forms(model, torch.arange(16)[None])
    assert (compared.logits, compared.different) == (160, 0)


def test_a_truncated_asset_is_one_line(bitnet, checkpoint, tmp_path, monkeypatch):
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    monkeypatch.setattr("bitnet_torch.assets.bundled_model", lambda: damaged)
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert bitnet("demo").refused(1, str(file))


def test_a_prompt_that_is_too_long_shows_no_text(bitnet, bundled):
    ended = bitnet("demo", "--prompt", "x" * 100)
    assert ended.status == 1
    assert "xxx" not in ended.out
    assert ended.err.count("\n") == 1
