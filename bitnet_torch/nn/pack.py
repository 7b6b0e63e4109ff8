"""Turn the trained BitLinear layers of a model into PackedBitLinear, in place."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeGuard

from torch import nn
from torch.optim.swa_utils import AveragedModel

from bitnet_torch.errors import ConfigurationError, QuantizationError
from bitnet_torch.nn.bit_linear import BitLinear
from bitnet_torch.nn.convert import Skipped
from bitnet_torch.nn.forms import TRAINING_FORMS
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.nn.packed_quant_linear import PackedQuantLinear

Packed = PackedBitLinear | PackedQuantLinear


@dataclass(frozen=True)
class PackedLayer:
    """One layer that was packed.

    Attributes:
        name: Where it stands in the model.
        out_features: N.
        in_features: K.
        latent_bytes: What its float weights took.
        packed_bytes: What its codes take, in the layout of its device.
    """

    name: str
    out_features: int
    in_features: int
    latent_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class PackReport:
    """What :func:`pack` did.

    Attributes:
        packed: The layers that hold 2-bit codes now.
        skipped: The linear layers that stay float, and why.
    """

    packed: tuple[PackedLayer, ...]
    skipped: tuple[Skipped, ...]

    @property
    def latent_bytes(self) -> int:
        """Bytes of the float weights that were given up."""
        return sum(layer.latent_bytes for layer in self.packed)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the codes that took their place."""
        return sum(layer.packed_bytes for layer in self.packed)

    def __str__(self) -> str:
        lines = [
            f"packed {len(self.packed)} layers: "
            f"{self.latent_bytes:,} bytes -> {self.packed_bytes:,} bytes"
        ]
        lines += [f"  skipped {s.name}: {s.reason}" for s in self.skipped]
        return "\n".join(lines)


def pack(model: nn.Module) -> PackReport:
    """Replace every :class:`BitLinear` inside ``model`` by its packed form, in place.

    A layer that stands in several places is packed once. Forward hooks are carried over; the
    latent weights are dropped. Averaged weights are packed with a warning
    (:func:`warn_if_averaged`).

    Raises:
        ConfigurationError: There is nothing to pack, or ``model`` itself is a BitLinear (its
            holder cannot be reached from here: use ``layer.packed()``).
        QuantizationError: A layer cannot be packed; the model is left as it was.
    """
    if isinstance(model, BitLinear):
        raise ConfigurationError("model is itself a BitLinear; call its packed() instead")
    warn_if_averaged(model)
    # All are made before the first takes its place, so that an error leaves the model whole.
    forms = {m: _packed(name, m) for name, m in model.named_modules() if _has_form(m)}
    if not forms:
        raise ConfigurationError(f"no BitLinear to pack in {type(model).__name__}")
    names = {module: name for name, module in model.named_modules()}
    skipped = [
        Skipped(name, f"is a {type(module).__name__}, not a BitLinear")
        for module, name in names.items()
        if isinstance(module, nn.Linear) and module not in forms
    ]
    for parent in list(model.modules()):
        # Not named_children(): that leaves out a child that stands under a second name.
        for child_name, child in list(parent._modules.items()):
            if isinstance(child, BitLinear) and child in forms:
                setattr(parent, child_name, forms[child])
    layers = [_describe(names[latent], latent, packed) for latent, packed in forms.items()]
    return PackReport(tuple(layers), tuple(skipped))


def warn_if_averaged(model: nn.Module) -> None:
    """Warn if ``model`` is an average of latent weights, such as their moving average (EMA).

    The average of weights on both sides of a threshold lies near the threshold: its codes are
    those of no model that was trained. A reported run lost 1.1 bits/byte so. Average the outputs
    of packed models, or train on with a falling learning rate, instead.
    """
    if any(isinstance(m, AveragedModel) for m in model.modules()):
        warnings.warn(
            f"{type(model).__name__} averages latent weights; ternarising an average gives codes "
            "that no step of the training had. Compare it with the model that was averaged",
            stacklevel=3,
        )


def _has_form(module: nn.Module) -> TypeGuard[BitLinear]:
    return type(module) in TRAINING_FORMS


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def _packed(name: str, layer: BitLinear) -> Packed:
    try:
        packed: Packed = layer.packed()
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}", module=name, **error.context) from error
    for hooks in _HOOKS:
        # The dictionaries themselves: a handle given out earlier still removes its hook.
        setattr(packed, hooks, getattr(layer, hooks))
    return packed


def _describe(name: str, latent: BitLinear, packed: Packed) -> PackedLayer:
    return PackedLayer(
        name,
        latent.out_features,
        latent.in_features,
        latent.weight.nbytes,
        sum(m.prepacked.nbytes for m in packed.modules() if isinstance(m, PackedBitLinear)),
    )
