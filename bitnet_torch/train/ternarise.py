"""Post-training ternarisation: what you get without quantisation-aware training.

The linear weights of a trained full-precision model are replaced by codes -1, 0, 1 and scales
that are near them. The rules are those of :mod:`bitnet_torch.quant`:

===============  ========================================================================
absmean          scale mean|W|, threshold half of it: BitNet's own quantiser
absmedian        the same with the median
twn              threshold 0.7 mean|W|, scale the mean of what exceeds it
alternating      codes and scale in turn, each the best for the other
exact-l2         codes and scale of least squared error
asymmetric       alternating, with an offset; has no packed form
gram             codes and scale of least error of the outputs, on calibration data
===============  ========================================================================

The result has one of three forms: ``float`` leaves ``nn.Linear`` with the nearest ternary
matrix and float activations, the baseline that favours the method; ``packed`` is what runs;
``latent`` is a BitLinear with these codes and these scales (or, where no float32 weights have such
a mean, the floats beside them), from which training can go on; after ``absmean``, whose codes they
have already, the weights stay as they are. These are baselines that a trained
ternary model has to beat; a smaller error of the weights is not always a better start for training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError, QuantizationError
from bitnet_torch.nn import BitLinear, PackedBitLinear
from bitnet_torch.nn.convert import Skipped, convertible
from bitnet_torch.nn.latent import near_latent_weight
from bitnet_torch.ops import pack_codes
from bitnet_torch.quant import QuantizedWeight, make_quantizer, quantize_on_data
from bitnet_torch.quant.gram import gram_matrices
from bitnet_torch.quant.metrics import WeightError, weight_error

DATA_FREE = ("absmean", "absmedian", "twn", "alternating", "exact-l2", "asymmetric")
METHODS = (*DATA_FREE, "gram")
FORMS = ("float", "packed", "latent")


@dataclass(frozen=True)
class TernarisedLayer:
    """One layer that was ternarised.

    Attributes:
        name: Where it stands in the model.
        error: How far its weights have moved.
        zeros: Share of the codes that are 0.
        output_error: Norm of the change of its outputs over that of the outputs, on the
            calibration data; None without it.
    """

    name: str
    error: WeightError
    zeros: float
    output_error: float | None


@dataclass(frozen=True)
class TernariseReport:
    """What :func:`ternarise` did.

    Attributes:
        method: The rule.
        granularity: What shares a scale.
        form: What the layers are now.
        layers: The layers that are ternary now.
        skipped: The linear-like layers that were left alone, and why.
    """

    method: str
    granularity: str
    form: str
    layers: tuple[TernarisedLayer, ...]
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        head = f"{self.method}, a scale per {self.granularity}: {len(self.layers)} layers"
        lines = [
            head,
            f"{'|W-Q|/|W|':>10} {'cosine':>8} {'SQNR dB':>8} {'zeros':>6} outputs  layer",
        ]
        lines += [_line(layer) for layer in self.layers]
        lines += [f"  skipped {s.name or '(root)'}: {s.reason}" for s in self.skipped]
        return "\n".join(lines)


def ternarise(
    model: nn.Module,
    method: str = "exact-l2",
    granularity: str = "row",
    *,
    group_size: int | None = None,
    form: str = "float",
    exclude: Sequence[str] = ("lm_head",),
    calibration: Iterable[Tensor] | None = None,
) -> TernariseReport:
    """Ternarise the ``nn.Linear`` layers of ``model``, in place.

    Args:
        model: In full precision.
        method: One of :data:`METHODS`.
        granularity: ``"matrix"``, ``"row"`` or ``"group"``: what shares a scale.
        group_size: Weights of a group, a divisor of K; with ``"group"`` only.
        form: One of :data:`FORMS`.
        exclude: Patterns of layers to leave alone, as for ``convert``.
        calibration: Batches that the model is called on, to see what its layers are given. Needed
            by ``gram``; otherwise only for the report's ``output_error``.

    Raises:
        ConfigurationError: A name is unknown, ``gram`` has no data, the form cannot hold the
            result, or there is no layer to ternarise.
        QuantizationError: A weight is not finite, or no float weights have such codes and scale.
        ShapeError: ``group_size`` does not divide a K.
    """
    _check_request(method, form, granularity, calibration)
    layers, skipped = convertible(model, exclude)
    _check_layers(model, layers, form)
    grams = {} if calibration is None else gram_matrices(model, layers, calibration)
    # All are made before the first takes its place, so that an error leaves the model whole.
    how = (method, granularity, group_size, grams)
    results = {name: _quantize(name, layer, *how) for name, layer in layers.items()}
    # BitLinear's own rule gives these codes for the weights as they are.
    kept = form == "latent" and method == "absmean"
    made = {
        name: layers[name].weight.detach() if kept else _formed(name, layers[name], q, form)
        for name, q in results.items()
    }
    rows = tuple(_describe(n, layers[n], q, grams.get(n)) for n, q in results.items())
    for name, layer in layers.items():
        _put(model, layer, made[name], form, granularity)
    return TernariseReport(method, granularity, form, rows, tuple(skipped))


def _check_layers(model: nn.Module, layers: Mapping[str, nn.Linear], form: str) -> None:
    if not layers:
        raise ConfigurationError(f"{type(model).__name__} has no nn.Linear to ternarise")
    if form == "packed" and "" in layers:
        raise ConfigurationError("model is itself the layer to pack; its holder is not known here")


def _check_request(
    method: str, form: str, granularity: str, calibration: Iterable[Tensor] | None
) -> None:
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {METHODS}, got {method!r}")
    if form not in FORMS:
        raise ConfigurationError(f"form must be one of {FORMS}, got {form!r}")
    if method == "gram" and calibration is None:
        raise ConfigurationError("method 'gram' needs calibration data")
    if form != "float" and method == "asymmetric":
        reason = make_quantizer(method).not_packable
        raise ConfigurationError(f"form must be 'float', got {form!r}: asymmetric {reason}")
    if form != "float" and granularity == "group":
        raise ConfigurationError(f"a {form} layer has a scale per matrix or row, not per group")


def _quantize(
    name: str,
    layer: nn.Linear,
    method: str,
    granularity: str,
    group_size: int | None,
    grams: dict[str, Tensor],
) -> QuantizedWeight:
    weight = layer.weight.detach()
    try:
        if method == "gram":
            return quantize_on_data(weight, grams[name], granularity, group_size)
        return make_quantizer(method, granularity, group_size).quantize(weight)
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}", module=name, **error.context) from error


def _formed(name: str, layer: nn.Linear, q: QuantizedWeight, form: str) -> Tensor | PackedBitLinear:
    """Return the weight that the layer shall have, or the layer that shall stand for it."""
    if form == "float":
        return q.dense().to(layer.weight.dtype)
    if form == "packed":
        bias = None if layer.bias is None else layer.bias.detach()
        packed = PackedBitLinear(pack_codes(q.codes), q.scale, layer.out_features, bias)
        return packed.train(layer.training)
    if layer.weight.dtype != torch.float32:
        raise ConfigurationError(
            f"latent weights of {name} must be float32 to have exactly these codes and scale, got "
            f"{layer.weight.dtype}"
        )
    return near_latent_weight(q.codes, q.scale)


@torch.no_grad()
def _put(
    model: nn.Module,
    layer: nn.Linear,
    made: Tensor | PackedBitLinear,
    form: str,
    granularity: str,
) -> None:
    if isinstance(made, Tensor):
        layer.weight.copy_(made)
        if form == "latent":
            layer.__class__ = BitLinear
            cast(BitLinear, layer).granularity = granularity
        return
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is layer:
                setattr(parent, child_name, made)


def _describe(
    name: str, layer: nn.Linear, q: QuantizedWeight, gram: Tensor | None
) -> TernarisedLayer:
    weight = layer.weight.detach()
    dense = q.dense()
    return TernarisedLayer(
        name,
        weight_error(weight, dense),
        float(q.codes.eq(0).to(torch.float64).mean()),
        None if gram is None else _output_error(weight, dense, gram),
    )


def _output_error(weight: Tensor, dense: Tensor, gram: Tensor) -> float | None:
    h, w = gram.to(torch.float64), weight.to(torch.float64)
    change, output = (float(((m @ h) * m).sum()) for m in (w - dense.to(torch.float64), w))
    return (max(change, 0.0) / output) ** 0.5 if output > 0 else None


def _line(layer: TernarisedLayer) -> str:
    error = layer.error
    cells = [
        f"{_shown(error.relative_error, 4):>10}",
        f"{_shown(error.cosine, 4):>8}",
        f"{_shown(error.sqnr_db, 2):>8}",
        f"{layer.zeros:>6.3f}",
        f"{_shown(layer.output_error, 4):>7}",
    ]
    return " ".join(cells) + f"  {layer.name}"


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
