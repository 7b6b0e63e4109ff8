"""The figures are those of a naive count, and a continued run has the same ones."""

import json

import pytest
import torch
from torch import nn

from bitnet_torch.nn import BitLinear, QuantLinear, convert
from bitnet_torch.ops import quantize_weight
from bitnet_torch.quant import QUANTIZERS, make_quantizer
from bitnet_torch.train.metrics import MetricsLog
from bitnet_torch.train.telemetry import BIN, BINS, Telemetry
from bitnet_torch.train.telemetry_plot import draw_telemetry

PARTS = [("matrix", None), ("row", None), ("group", 3)]


def moved(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p += torch.randn(p.shape, generator=g) * 0.1


@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_the_figures_are_those_of_a_naive_count(granularity):
    # Rows that are no multiple of four: the packed form has rows that do not count.
    model = nn.ModuleDict(
        {
            "a": BitLinear(13, 7, granularity=granularity),
            "b": BitLinear(5, 6, granularity=granularity),
        }
    )
    telemetry = Telemetry()
    first = telemetry.measure(model, 10)
    assert first["flips_per_step"] is None
    assert first["layers"]["a"]["scale_drift"] == 0
    before = {n: quantize_weight(m.weight.detach(), granularity) for n, m in model.items()}
    moved(model, 1)
    got = telemetry.measure(model, 14)
    zeros = flips = near = 0
    for name, layer in model.items():
        codes, scale = quantize_weight(layer.weight.detach(), granularity)
        figures = got["layers"][name]
        n = codes.numel()
        ratio = layer.weight.detach().abs() / (scale[:, None] if scale.dim() else scale)
        counts = [
            int((codes == 0).sum()),
            int((codes != before[name][0]).sum()),
            int(((ratio >= 0.45) & (ratio < 0.55)).sum()),
        ]
        assert figures["zero_fraction"] == counts[0] / n
        assert figures["flips_per_step"] == counts[1] / n / 4
        assert figures["near_threshold"] == counts[2] / n
        assert figures["scale"] == pytest.approx(float(scale.mean()), rel=1e-6)
        drift = float(scale.mean() / before[name][1].mean()) - 1
        assert figures["scale_drift"] == pytest.approx(drift, abs=1e-6)
        zeros, flips, near = zeros + counts[0], flips + counts[1], near + counts[2]
    total = 13 * 7 + 5 * 6
    assert got["zero_fraction"] == zeros / total
    assert got["flips_per_step"] == flips / total / 4
    assert got["near_threshold"] == near / total
    assert len(got["histogram"]) == BINS
    within = sum(
        int((m.weight.abs() <= BINS * BIN * quantize_weight(m.weight.detach())[1]).sum())
        for m in model.values()
    )
    if granularity == "matrix":
        assert sum(got["histogram"]) == within
    json.dumps(got)


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantiser_can_be_measured_also_in_its_warm_up(name, parts):
    layer = QuantLinear(12, 6, quantizer=make_quantizer(name, *parts))
    layer.strength = 0.5
    telemetry = Telemetry()
    telemetry.measure(layer, 0)
    before = layer.quantizer.quantize(layer.weight.detach()).codes
    moved(layer, 2)
    got = telemetry.measure(layer, 1)
    after = layer.quantizer.quantize(layer.weight.detach()).codes
    assert got["zero_fraction"] == int((after == 0).sum()) / 72
    assert got["flips_per_step"] == int((after != before).sum()) / 72


def test_a_model_in_full_precision_has_no_figures():
    model = nn.Sequential(nn.Linear(4, 4))
    assert Telemetry().measure(model, 3) is None
    assert Telemetry().state() == {}
    convert(model)
    assert Telemetry().measure(model, 4) is not None


def test_what_is_remembered_goes_through_tensors():
    model = nn.Sequential(BitLinear(12, 8), QuantLinear(12, 8, quantizer=make_quantizer("seq-2")))
    telemetry, other = Telemetry(), Telemetry()
    telemetry.measure(model, 5)
    other.restore({k: v.clone() for k, v in telemetry.state().items()})
    moved(model, 3)
    assert other.measure(model, 9) == telemetry.measure(model, 9)


def test_measuring_changes_nothing():
    model = nn.Sequential(BitLinear(12, 8))
    before = model[0].weight.detach().clone()
    state = torch.get_rng_state()
    Telemetry().measure(model, 1)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model[0].weight.grad is None


def test_the_picture_needs_a_measurement(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"step": 1, "loss": 2.0, "learning_rate": 1e-3})
    assert not draw_telemetry(tmp_path / "m.jsonl", tmp_path / "t.png")
    model, telemetry = nn.Sequential(BitLinear(12, 8)), Telemetry()
    for step in (1, 2):
        log.write({"step": step, "telemetry": telemetry.measure(model, step)})
    log.close()
    assert draw_telemetry(tmp_path / "m.jsonl", tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
