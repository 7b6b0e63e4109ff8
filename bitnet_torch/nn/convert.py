"""Turn the linear layers of any model into BitLinear, in place.

A layer is retyped, not rebuilt: the same module object with the same Parameter objects, so
hooks, references and an optimizer's state survive the switch from full precision to
quantisation-aware training. Every linear-like module ends up in the report, converted or
skipped with its reason.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn.bit_linear import BitLinear, check_backward
from bitnet_torch.nn.float_linear import is_plain_linear
from bitnet_torch.nn.forms import TernaryForm
from bitnet_torch.ops._checks import FLOATS, MAX_K
from bitnet_torch.quant.weight import WeightQuantizer

# The last name of a mixture-of-experts router in the common model families. A router picks
# experts by small differences of its outputs, which ternary weights do not keep. A GLU may be
# called "gate" too, but it widens; a router narrows to the number of experts.
ROUTERS = ("router", "gate", "shared_expert_gate", "gate_network", "wg")


@dataclass(frozen=True)
class Skipped:
    """One module that was left as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert` did.

    Attributes:
        converted: Names of the modules that are BitLinear now.
        skipped: Names and reasons of the linear-like modules that were left alone.
        weights: Number of weights that act as ternary now.
    """

    converted: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    weights: int

    def __str__(self) -> str:
        lines = [f"converted {len(self.converted)} layers, {self.weights:,} weights"]
        lines += [f"  skipped {s.name or '(root)'}: {s.reason}" for s in self.skipped]
        return "\n".join(lines)


def convert(
    model: nn.Module,
    exclude: Sequence[str] = ("lm_head",),
    *,
    granularity: str = "matrix",
    quantizer: WeightQuantizer | None = None,
    activation_bits: int = 8,
    rotate: Sequence[str] = (),
    backward: str = "float",
) -> ConversionReport:
    """Turn every ``nn.Linear`` of ``model`` into :class:`BitLinear`, in place.

    With a quantiser, int4 activations or a rotation: :class:`QuantLinear`, :class:`HBitLinear`.

    Args:
        model: Any module; its parameters stay the same objects.
        exclude: Patterns (``fnmatch``) of module names to leave alone. A pattern is compared
            with the full name and with its last part, so ``"lm_head"`` matches at any depth.
        granularity: ``"matrix"`` for one scale per layer, ``"row"`` for one per output.
        quantizer: Rule for the weights, of which each layer gets a copy; says what shares a scale.
        activation_bits: 8, or 4.
        rotate: Patterns, as in ``exclude``, of the layers whose input is to be rotated.
        backward: ``"float"``, or ``"int8"`` for gradients with noise, in less time; see
            :mod:`bitnet_torch.nn.int8_backward`. It has no say where a layer computes in floats.

    Raises:
        ConfigurationError: Nothing was converted (the message says why), or settings contradict.
        ShapeError: A layer does not fit the quantiser; no layer is converted.
    """
    _check_patterns("rotate", rotate)
    check_backward(backward)
    form = TernaryForm(granularity, quantizer, activation_bits)
    layers, skipped = convertible(model, exclude)
    names = _names(model)
    rotated = {n: any(_matches(p, names[m]) for p in rotate) for n, m in layers.items()}
    for name, module in layers.items():
        form.check(name, module, rotated[name])
    for name, module in layers.items():
        form.give(module, rotated[name])
        cast(BitLinear, module).backward = backward
    weights = sum(m.weight.numel() for m in layers.values())
    report = ConversionReport(tuple(layers), tuple(skipped), weights)
    if not layers:
        raise ConfigurationError(f"no nn.Linear to convert in {type(model).__name__}: {report}")
    return report


def convertible(
    model: nn.Module, exclude: Sequence[str]
) -> tuple[dict[str, nn.Linear], list[Skipped]]:
    """Return the layers that can become ternary by name, and the linear-like others with reasons.

    Raises:
        ConfigurationError: ``exclude`` is not a sequence of patterns.
    """
    _check_patterns("exclude", exclude)
    owners, bypassed = _weight_owners(model), _bypassed(model)
    layers: dict[str, nn.Linear] = {}
    skipped: list[Skipped] = []
    for module, names in _names(model).items():
        if not _is_linear_like(module):
            continue
        reason = bypassed.get(module) or _reason_to_skip(names, module, exclude, owners)
        if reason or not isinstance(module, nn.Linear):
            skipped.append(Skipped(names[0], reason or "is no nn.Linear"))
        else:
            layers[names[0]] = module
    return layers, skipped


def _check_patterns(name: str, patterns: object) -> None:
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise ConfigurationError(f"{name} must be a sequence of patterns, got {patterns!r}")


def _matches(pattern: str, names: list[str]) -> bool:
    lasts = (name.rpartition(".")[2] for name in names)
    return any(fnmatch.fnmatchcase(n, pattern) for n in (*names, *lasts))


def _is_linear_like(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return every module with all its names: one layer may stand in several places."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _bypassed(model: nn.Module) -> dict[nn.Module, str]:
    """Return the layers whose forward is not called in inference, with the reason."""
    reason = "belongs to a TransformerEncoderLayer, whose fast path multiplies by the weight itself"
    return {
        child: reason
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        for child in (module.linear1, module.linear2)
    }


def _weight_owners(model: nn.Module) -> Counter[int]:
    """Count the modules that hold each parameter, so that a shared weight is noticed."""
    return Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )


def _reason_to_skip(
    names: list[str], module: nn.Module, exclude: Sequence[str], owners: Counter[int]
) -> str | None:
    lasts = [name.rpartition(".")[2] for name in names]
    if isinstance(module, BitLinear):
        return "is a BitLinear already"
    if type(module).__name__ == "Conv1D":
        return "Conv1D holds its weight transposed; replace it by nn.Linear first"
    for pattern in exclude:
        if _matches(pattern, names):
            return f"excluded by {pattern!r}"
    if not is_plain_linear(module):
        return f"is a {type(module).__name__}, a subclass whose forward may differ"
    if set(lasts) & set(ROUTERS) and module.out_features < module.in_features:
        return "looks like a mixture-of-experts router, whose choices ternary weights would change"
    if owners[id(module.weight)] > 1:
        return "shares its weight with another module"
    if module.weight.dtype not in FLOATS:
        return f"has {module.weight.dtype} weights"
    if module.in_features > MAX_K:
        return f"has K={module.in_features}; sums are exact up to K={MAX_K}"
    return None
