import pytest
import torch
from torch import nn
from transformers.integrations.bitnet import AutoBitLinear
from transformers.integrations.bitnet import BitLinear as HFBitLinear

import bitnet_torch as bt
from bitnet_torch.errors import ConfigurationError, QuantizationError
from bitnet_torch.nn import NormedLinear, PackedBitLinear
from tests.bits import same_bits
from tests.interop.compare import TIGHT, check_loosely, prompt_without_ties, quantised
from tests.interop.families import DIVIDE, FAMILIES, MULTIPLY, Family, make_folder, reference

TERNARY = [f for f in FAMILIES if f.quantization is not None]
IDS = torch.arange(2 * 12).reshape(2, 12) * 5 % 96


@torch.no_grad()
@pytest.mark.parametrize("family", TERNARY, ids=str)
def test_an_accelerated_model_computes_what_it_did(tmp_path, family):
    model = reference(make_folder(tmp_path / "m", family))
    ids, logits, _ = prompt_without_ties(model)
    any_logits = model(IDS).logits
    before = quantised(model)
    report = bt.accelerate(model)
    assert [layer.name for layer in report.swapped] == list(before)
    assert not quantised(model)
    assert (model(ids).logits - logits).abs().max() <= TIGHT
    check_loosely(model(IDS).logits, any_logits)


@torch.no_grad()
@pytest.mark.parametrize("family", TERNARY, ids=str)
def test_generate_runs_on_our_kernels(tmp_path, family, monkeypatch):
    folder = make_folder(tmp_path / "m", family)
    plain, fast = reference(folder), reference(folder)
    bt.accelerate(fast)
    calls = []
    forward = PackedBitLinear.forward
    monkeypatch.setattr(
        PackedBitLinear, "forward", lambda self, x: calls.append(1) or forward(self, x)
    )
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    ours, theirs = (model.generate(IDS[:1], **settings) for model in (fast, plain))
    assert ours.sequences.shape == (1, 18)
    assert len(calls) == 6 * len(quantised(plain))
    # Any step may meet a tie, and one that chooses between near equals starts another text.
    for step, (a, b) in enumerate(zip(ours.scores, theirs.scores, strict=True)):
        check_loosely(a, b)
        first, second = b[0].topk(2).values
        if first - second < 0.3:
            break
        assert ours.sequences[0, 12 + step] == theirs.sequences[0, 12 + step]


def test_the_report_says_what_was_swapped_and_what_was_not(tmp_path):
    families = {f.name: f for f in FAMILIES}
    kinds = {"divide": "BitLinear", "online": "AutoBitLinear online"}
    for name, kind in {**kinds, "multiply": "AutoBitLinear offline"}.items():
        folder = make_folder(tmp_path / name, families[f"llama-{name}"])
        report = bt.accelerate(reference(folder))
        assert {layer.kind for layer in report.swapped} == {kind}
        assert len(report.swapped) == 14
        assert [s.name for s in report.skipped] == ["lm_head"]
        assert "accelerated 14 layers" in str(report)
        assert "skipped lm_head: is a Linear, not ternary" in str(report)
        if name != "divide":
            assert report.bytes_after < report.bytes_before / 8


def test_a_shared_layer_and_a_norm_inside_stay_what_they_are(tmp_path):
    family = next(f for f in FAMILIES if f.name == "llama-inner-norm-divide")
    model = reference(make_folder(tmp_path / "m", family))
    layer = model.model.layers[0].mlp
    model.again = layer.up_proj
    gain = layer.up_proj.rms_norm.weight.clone()
    bt.accelerate(model)
    assert isinstance(layer.up_proj, NormedLinear)
    assert model.again is layer.up_proj
    assert same_bits(layer.up_proj.rms_norm.weight, gain)
    assert not layer.up_proj.rms_norm.weight.requires_grad
    assert layer.up_proj.rms_norm.eps == 1e-5


def test_nothing_to_swap_is_an_error(tmp_path):
    model = reference(make_folder(tmp_path / "m", Family("plain", "llama")))
    with pytest.raises(ConfigurationError, match=r"no BitLinear or AutoBitLinear .*LlamaForCausal"):
        bt.accelerate(model)
    with pytest.raises(ConfigurationError, match="itself one layer"):
        bt.accelerate(HFBitLinear(8, 8, bias=False))


def test_float16_is_refused_for_relu2_only(tmp_path):
    relu2 = reference(make_folder(tmp_path / "a", Family("relu2", "bitnet", MULTIPLY)))
    nn.Module.half(relu2)
    with pytest.raises(ConfigurationError, match=r"float16, which cannot run a relu2 .*65504"):
        bt.accelerate(relu2)
    assert len(quantised(relu2)) == 14
    silu = reference(make_folder(tmp_path / "b", Family("silu", "llama", MULTIPLY)))
    assert bt.accelerate(nn.Module.half(silu)).swapped


def damaged(change):
    model = nn.Sequential(AutoBitLinear(8, 4, bias=False), HFBitLinear(8, 4, bias=False))
    model[0].weight.data.zero_()
    model[1].weight.fill_(0x55)
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m[0].weight.data[2, 3].fill_(0.5), r"0: weight\[2, 3\] is 0.5"),
        (lambda m: m[0].weight.data[1, 1].fill_(float("nan")), r"0: weight\[1, 1\] is nan"),
        (lambda m: m[0].weight_scale.fill_(-1.0), "0: weight_scale is -1.0"),
        (lambda m: m[1].weight_scale.fill_(float("inf")), "1: weight_scale is inf"),
        (lambda m: m[1].weight.fill_(0xFF), "1: .*code 3"),
    ],
)
def test_a_layer_that_is_damaged_is_named_and_nothing_is_swapped(change, match):
    model = damaged(change)
    with pytest.raises(QuantizationError, match=match):
        bt.accelerate(model)
    assert [type(m) for m in model] == [AutoBitLinear, HFBitLinear]
    assert bt.accelerate(damaged(lambda m: None)).swapped


def test_layers_without_values_are_named(tmp_path):
    model = reference(make_folder(tmp_path / "m", Family("meta", "llama", DIVIDE)))
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(ConfigurationError, match=r"layers.1.mlp.gate_proj has no values"):
        bt.accelerate(model)
