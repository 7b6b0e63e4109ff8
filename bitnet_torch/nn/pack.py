"""Turn the trained BitLinear layers of a model into PackedBitLinear, in place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bitnet_torch.errors import ConfigurationError, QuantizationError
from bitnet_torch.nn.bit_linear import BitLinear
from bitnet_torch.nn.convert import Skipped
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear


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
    latent weights are dropped.

    Raises:
        ConfigurationError: There is nothing to pack, or ``model`` itself is a BitLinear (its
            holder cannot be reached from here: use ``layer.packed()``).
        QuantizationError: A layer cannot be packed; the model is left as it was.
    """
    if isinstance(model, BitLinear):
        raise ConfigurationError("model is itself a BitLinear; call its packed() instead")
    # All are made before the first takes its place, so that an error leaves the model whole.
    forms = {m: _packed(name, m) for name, m in model.named_modules() if type(m) is BitLinear}
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


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def _packed(name: str, layer: BitLinear) -> PackedBitLinear:
    try:
        packed = layer.packed()
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}", module=name, **error.context) from error
    for hooks in _HOOKS:
        # The dictionaries themselves: a handle given out earlier still removes its hook.
        setattr(packed, hooks, getattr(layer, hooks))
    return packed


def _describe(name: str, latent: BitLinear, packed: PackedBitLinear) -> PackedLayer:
    return PackedLayer(
        name,
        latent.out_features,
        latent.in_features,
        latent.weight.nbytes,
        packed.prepacked.nbytes,
    )
