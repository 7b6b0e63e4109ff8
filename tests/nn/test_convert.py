"""Converting and packing whole models: what is changed, what is left, and what is said of it."""

import pytest
import torch
from torch import nn

import bitnet_torch as bt
from bitnet_torch.errors import ConfigurationError, QuantizationError
from tests.bits import same_bits


class Conv1D(nn.Module):
    """The shape of GPT-2's layer: a weight of (in, out)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8))


class Special(nn.Linear):
    """A subclass whose forward could be anything."""


class Zoo(nn.Module):
    """One of everything that a conversion may meet."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 8)
        self.plain = nn.Linear(8, 8)
        self.block = nn.ModuleDict({"up": nn.Linear(8, 16), "router": nn.Linear(16, 2)})
        self.gate = nn.Linear(8, 32)
        self.special = Special(8, 8)
        self.conv1d = Conv1D()
        self.done = bt.BitLinear(8, 8)
        self.double = nn.Linear(8, 8, dtype=torch.float64)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.embed.weight
        self.lm_head = nn.Linear(8, 8)


def test_every_linear_layer_is_in_the_report_converted_or_with_its_reason():
    model = Zoo()
    report = bt.convert(model)
    assert report.converted == ("plain", "block.up", "gate")
    reasons = {s.name: s.reason for s in report.skipped}
    assert set(reasons) == {
        "block.router", "special", "conv1d", "done", "double", "tied", "lm_head"
    }  # fmt: skip
    assert "router" in reasons["block.router"]
    assert "Special" in reasons["special"]
    assert "transposed" in reasons["conv1d"]
    assert "already" in reasons["done"]
    assert "float64" in reasons["double"]
    assert "shares its weight" in reasons["tied"]
    assert reasons["lm_head"] == "excluded by 'lm_head'"
    assert report.weights == 8 * 8 + 16 * 8 + 32 * 8
    assert all(name in str(report) for name in reasons)


def test_parameters_hooks_and_optimizer_state_survive():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    before = [id(p) for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    bt.convert(model)
    assert [id(p) for p in model.parameters()] == before
    after = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
    assert all(same_bits(a, b) for a, b in zip(after, moments, strict=True))
    model(torch.randn(2, 8))
    assert calls == [1]


def test_a_model_that_is_one_linear_layer_is_converted():
    layer = nn.Linear(8, 4)
    assert bt.convert(layer).converted == ("",)
    assert type(layer) is bt.BitLinear


def test_exclude_takes_full_names_last_names_and_patterns():
    model = nn.ModuleDict({"a": nn.ModuleDict({"x": nn.Linear(4, 4), "y": nn.Linear(4, 4)})})
    model["z"] = nn.Linear(4, 4)
    assert bt.convert(model, exclude=("a.x", "z*")).converted == ("a.y",)


def test_row_granularity_is_passed_on():
    model = nn.Sequential(nn.Linear(8, 4))
    bt.convert(model, granularity="row")
    assert model[0].granularity == "row"
    assert model[0].packed().weight_scale.shape == (4,)


def test_nothing_to_convert_is_an_error_that_lists_why():
    with pytest.raises(ConfigurationError, match=r"(?s)no nn.Linear.*skipped lm_head: excluded"):
        bt.convert(nn.ModuleDict({"lm_head": nn.Linear(4, 4)}))
    with pytest.raises(ConfigurationError, match=r"no nn\.Linear to convert in ReLU"):
        bt.convert(nn.ReLU())


def test_wrong_settings_are_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigurationError, match="granularity"):
        bt.convert(model, granularity="group")
    with pytest.raises(ConfigurationError, match="exclude must be a sequence"):
        bt.convert(model, exclude="0")
    with pytest.raises(ConfigurationError, match="exclude must be a sequence"):
        bt.convert(model, exclude=None)
    assert type(model[0]) is nn.Linear


def test_a_packed_model_has_the_bits_of_the_trained_one():
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    bt.convert(model)
    x = torch.randn(5, 32)
    want = model(x)
    report = bt.pack(model)
    assert same_bits(model(x), want)
    assert [p.name for p in report.packed] == ["0", "2"]
    assert report.latent_bytes == 4 * (32 * 64 + 64 * 8)
    assert report.packed_bytes == (32 * 64 + 64 * 8) // 4
    assert "packed 2 layers" in str(report)


def test_a_layer_that_stands_twice_is_packed_once():
    layer = bt.BitLinear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    report = bt.pack(model)
    assert len(report.packed) == 1
    assert model[0] is model[2]
    assert type(model[0]) is bt.PackedBitLinear


def test_packing_reports_the_float_layers_it_leaves():
    model = nn.ModuleDict({"a": bt.BitLinear(8, 8), "lm_head": nn.Linear(8, 8)})
    report = bt.pack(model)
    assert [s.name for s in report.skipped] == ["lm_head"]


def test_nothing_to_pack_is_an_error():
    with pytest.raises(ConfigurationError, match="no BitLinear to pack in Sequential"):
        bt.pack(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ConfigurationError, match="call its packed"):
        bt.pack(bt.BitLinear(4, 4))


def test_an_error_in_one_layer_names_it_and_leaves_the_model_whole():
    model = nn.Sequential(bt.BitLinear(8, 8), bt.BitLinear(8, 8))
    with torch.no_grad():
        model[1].weight[3, 4] = float("nan")
    with pytest.raises(QuantizationError, match=r"^1: weight \[3, 4\] is nan") as caught:
        bt.pack(model)
    assert caught.value.context["module"] == "1"
    assert [type(m) for m in model] == [bt.BitLinear, bt.BitLinear]


def test_packing_keeps_forward_hooks_and_their_handles():
    model, x = nn.Sequential(bt.BitLinear(8, 8)), torch.randn(2, 8)
    handle = model[0].register_forward_hook(lambda module, args, output: output + 1)
    want = model(x)
    bt.pack(model)
    assert same_bits(model(x), want)
    handle.remove()
    assert same_bits(model(x) + 1, want)


def test_a_subclass_of_bitlinear_is_left_alone_with_its_reason():
    class Scaled(bt.BitLinear):
        def forward(self, input):
            return 2 * super().forward(input)

    model = nn.Sequential(bt.BitLinear(8, 8), Scaled(8, 8))
    report = bt.pack(model)
    assert [s.name for s in report.skipped] == ["1"]
    assert "Scaled" in report.skipped[0].reason


def test_a_layer_excluded_under_one_of_its_names_stays_float():
    head = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": head, "lm_head": head, "b": nn.Linear(8, 8)})
    assert bt.convert(model).converted == ("b",)
    assert type(head) is nn.Linear


def test_layers_whose_forward_pytorch_bypasses_are_left_alone():
    model = nn.ModuleDict({"t": nn.TransformerEncoderLayer(8, 2, 16), "x": nn.Linear(8, 8)})
    report = bt.convert(model)
    assert report.converted == ("x",)
    assert "fast path" in {s.name: s.reason for s in report.skipped}["t.linear1"]
