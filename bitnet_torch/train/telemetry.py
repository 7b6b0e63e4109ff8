"""What the ternary layers of a model do while it trains: a row of figures now and then.

Per layer and over all weights:

===================  =========================================================================
``zero_fraction``    share of codes that are 0
``flips_per_step``   share of codes that differ from the measurement before, per step since then;
                     a code that has gone and come back does not count
``scale``            mean quantum
``scale_drift``      its relative change since the first measurement
``near_threshold``   share of weights with ``0.45 <= |w| / scale < 0.55``: next to flip, for
                     quantisers whose threshold is half a quantum
``histogram``        weights by ``|w| / scale``, in 60 bins of 0.05 (over all weights only)
===================  =========================================================================

A measurement ternarises each weight once more, about the cost of a forward pass's quantisers. It
reads the weights, never writes them. Codes of the last measurement are kept, two bits a weight,
and go into checkpoints, so that a continued run has the rows of an uninterrupted one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitnet_torch.nn import BitLinear, QuantLinear
from bitnet_torch.ops import pack_codes
from bitnet_torch.quant.weight import spread

BINS, BIN = 60, 0.05
_NEAR = slice(9, 11)
# Of each byte of four codes: how many are 0, which is stored as 1; how many fields are not 0.
_FIELDS_OF = [[byte >> shift & 3 for shift in (0, 2, 4, 6)] for byte in range(256)]
_ZEROS = torch.tensor([fields.count(1) for fields in _FIELDS_OF])
_CHANGED = torch.tensor([4 - fields.count(0) for fields in _FIELDS_OF])


class Codes(NamedTuple):
    """Codes of a layer.

    Attributes:
        held: Packed, (ceil(N/4), K) uint8; (N, K) int8 where there are other codes than ternary.
        scale: Quanta.
    """

    held: Tensor
    scale: Tensor


class _Counts(NamedTuple):
    """What is counted in a layer, or in all of them; ``flips`` is None without a code before."""

    weights: int
    zeros: int
    flips: int | None
    histogram: Tensor
    scale: Tensor

    @staticmethod
    def sum(parts: list[_Counts]) -> _Counts:
        """Return the counts of all layers, with no scale."""
        flips = [part.flips for part in parts if part.flips is not None]
        return _Counts(
            sum(part.weights for part in parts),
            sum(part.zeros for part in parts),
            sum(flips) if len(flips) == len(parts) else None,
            torch.stack([part.histogram for part in parts]).sum(0),
            torch.tensor(float("nan")),
        )

    def shares(self, steps: int) -> dict[str, float | None]:
        """Return shares of the weights; of flips, per step of ``steps``."""
        weights = max(self.weights, 1)
        return {
            "zero_fraction": self.zeros / weights,
            "flips_per_step": None if self.flips is None else self.flips / weights / steps,
            "near_threshold": float(self.histogram[_NEAR].sum()) / weights,
        }


class Telemetry:
    """Measures a model, and remembers what the next measurement compares with."""

    def __init__(self) -> None:
        self.step = 0
        self._codes: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> dict[str, Any] | None:
        """Return the figures after ``step`` steps, or None if no layer is ternary."""
        layers = {n: m for n, m in model.named_modules() if isinstance(m, BitLinear)}
        if not layers:
            return None
        steps = max(step - self.step, 1)
        counts = {name: self._count_layer(name, layer) for name, layer in layers.items()}
        self.step = step
        total = _Counts.sum(list(counts.values()))
        return {
            **total.shares(steps),
            "histogram": [int(count) for count in total.histogram.tolist()],
            "layers": {
                name: {
                    **count.shares(steps),
                    "scale": float(count.scale),
                    "scale_drift": float(count.scale / self._first[name] - 1),
                }
                for name, count in counts.items()
            },
        }

    def _count_layer(self, name: str, layer: BitLinear) -> _Counts:
        codes = codes_of(layer)
        flips = self._flips(name, codes.held)
        self._codes[name] = codes.held
        scale = codes.scale.mean()
        self._first.setdefault(name, scale)
        return _Counts(
            layer.weight.numel(),
            _zeros(codes.held, layer),
            flips,
            _histogram(layer.weight, codes.scale),
            scale,
        )

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered, as tensors by name."""
        state = {f"codes.{name}": codes for name, codes in self._codes.items()}
        state |= {f"first.{name}": scale for name, scale in self._first.items()}
        return {**state, "step": torch.tensor(self.step)} if state else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Remember what :meth:`state` has returned."""
        self.step = int(state.get("step", torch.tensor(0)))
        self._codes = _with_prefix(state, "codes.")
        self._first = _with_prefix(state, "first.")

    def _flips(self, name: str, held: Tensor) -> int | None:
        before = self._codes.get(name)
        if before is None or before.shape != held.shape or before.dtype != held.dtype:
            return None
        if held.dtype != torch.uint8:
            return int((before != held).sum())
        return _count(before.to(held.device) ^ held, _CHANGED)


def codes_of(layer: BitLinear) -> Codes:
    """Return the codes and quanta of a layer as they are now, also in its warm-up."""
    if not isinstance(layer, QuantLinear):
        return Codes(*layer.codes())
    quantized = layer.quantizer.quantize(layer.weight.detach())
    ternary = layer.quantizer.not_packable is None
    held = pack_codes(quantized.codes) if ternary else quantized.codes
    return Codes(held, quantized.scale)


def _zeros(held: Tensor, layer: BitLinear) -> int:
    if held.dtype != torch.uint8:
        return int((held == 0).sum())
    # Rows past N hold zeros.
    padding = (held.shape[0] * 4 - layer.out_features) * layer.in_features
    return _count(held, _ZEROS) - padding


def _count(packed: Tensor, per_byte: Tensor) -> int:
    counts = torch.bincount(packed.reshape(-1), minlength=256)
    return int((counts.cpu() * per_byte).sum())


def _histogram(weight: Tensor, scale: Tensor) -> Tensor:
    ratio = weight.detach().float().abs() / spread(scale, weight)
    return torch.histc(ratio, BINS, 0.0, BINS * BIN).cpu().double()


def _with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
