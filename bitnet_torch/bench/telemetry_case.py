"""What telemetry costs: one measurement of a model's ternary layers, beside one training step.

The ratio says how many measurements a step is long. At the default interval a run measures once
in 50 steps, so the share of its time is 1 / (50 * ratio): below 1 % where the ratio is above 2.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bitnet_torch.bench.cases import Case
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.train_suite import TrainPlan, _both
from bitnet_torch.bench.verify import Check
from bitnet_torch.errors import BitNetError
from bitnet_torch.nn import BitLinear
from bitnet_torch.ops import quantize_weight
from bitnet_torch.train.telemetry import Telemetry


def telemetry_case(plan: TrainPlan) -> Case:
    """Return the case of one measurement; its baseline is a step of the same model."""
    step, _ = _both(plan)
    telemetry = Telemetry()
    layers = [m for m in step.model.modules() if isinstance(m, BitLinear)]
    return Case(
        replace(plan.subject("telemetry", "one step"), candidate="one measurement"),
        Contender(
            "telemetry",
            [lambda: telemetry.measure(step.model, telemetry.step + 1)],
            _counts_zeros(telemetry, step.model, layers),
        ),
        Contender("step", [step], step.loss_is_that_of_chance()),
        # The weights once for the codes and once for the histogram.
        nbytes=2 * sum(layer.weight.nbytes for layer in layers),
    )


def _counts_zeros(telemetry: Telemetry, model: torch.nn.Module, layers: list[BitLinear]) -> Check:
    def check() -> str:
        figures = telemetry.measure(model, telemetry.step + 1) or {}
        codes = [quantize_weight(layer.weight.detach())[0] for layer in layers]
        zeros = sum(int((t == 0).sum()) for t in codes)
        want = zeros / sum(t.numel() for t in codes)
        if figures.get("zero_fraction") != want:
            raise BitNetError(f"telemetry: zero fraction {figures} is not {want}")
        return "zero fraction of a naive count; share of a run 1 / (50 ratio)"

    return check
