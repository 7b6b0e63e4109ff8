"""Give a model of transformers our kernels: its ternary layers become PackedBitLinear, in place.

Two classes of transformers hold ternary layers, in three forms:

=========================  ==================  ==============  ===============================
class                      ``weight``          scale           ``bias``
=========================  ==================  ==============  ===============================
``BitLinear``              packed codes        1 / w_scale     as it is
``AutoBitLinear`` offline  codes, as floats    w_scale         in units of w_scale
``AutoBitLinear`` online   float masters       none            as it is
=========================  ==================  ==============  ===============================

transformers unpacks codes to floats at every call, or for good, and multiplies floats; here they
stay 2-bit codes. Masters are quantised once: what comes out is for inference. A layer with a norm
inside (``use_rms_norm``) becomes a :class:`NormedLinear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import BitNetError, ConfigurationError, QuantizationError
from bitnet_torch.nn.convert import Skipped
from bitnet_torch.nn.norm import RMSNorm
from bitnet_torch.nn.normed_linear import NormedLinear
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.ops.pack_codes import pack_codes
from bitnet_torch.ops.quantize_pack_weight import quantize_pack_weight


@dataclass(frozen=True)
class AcceleratedLayer:
    """One layer that was swapped.

    Attributes:
        name: Where it stands in the model.
        kind: ``"BitLinear"``, ``"AutoBitLinear offline"`` or ``"AutoBitLinear online"``.
        out_features: N.
        in_features: K.
        bytes_before: Of its weights.
        bytes_after: Of its codes, in the layout of its device.
    """

    name: str
    kind: str
    out_features: int
    in_features: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class AccelerateReport:
    """What :func:`accelerate` did.

    Attributes:
        swapped: The layers that run on our kernels now.
        skipped: The linear layers that stay as they were, and why.
    """

    swapped: tuple[AcceleratedLayer, ...]
    skipped: tuple[Skipped, ...]

    @property
    def bytes_before(self) -> int:
        """Bytes of the weights that were given up."""
        return sum(layer.bytes_before for layer in self.swapped)

    @property
    def bytes_after(self) -> int:
        """Bytes of the codes that took their place."""
        return sum(layer.bytes_after for layer in self.swapped)

    def __str__(self) -> str:
        lines = [
            f"accelerated {len(self.swapped)} layers: "
            f"{self.bytes_before:,} bytes -> {self.bytes_after:,} bytes"
        ]
        lines += [f"  skipped {s.name}: {s.reason}" for s in self.skipped]
        return "\n".join(lines)


def accelerate(hf_model: nn.Module) -> AccelerateReport:
    """Swap the ternary layers of a loaded transformers model for ours, in place.

    Afterwards ``hf_model.generate`` runs on our kernels. Save or train the model before: its
    layers are for inference now.

    Args:
        hf_model: From ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigurationError: The model has no such layer, is itself one, computes relu2 in float16,
            or has layers without values. It is left as it was.
        QuantizationError: A layer does not hold codes, a scale or finite masters. The model is
            left as it was.

    Example::

        model = AutoModelForCausalLM.from_pretrained("microsoft/bitnet-b1.58-2B-4T")
        print(bitnet_torch.accelerate(model))
        model.generate(**tokenizer("Hello", return_tensors="pt"))
    """
    kinds = _kinds()
    if isinstance(hf_model, kinds):
        raise ConfigurationError("the model is itself one layer; give the model that holds it")
    found = {m: name for name, m in hf_model.named_modules() if isinstance(m, kinds)}
    if not found:
        raise ConfigurationError(
            f"no BitLinear or AutoBitLinear of transformers in {type(hf_model).__name__}; it was "
            "not loaded from a BitNet checkpoint"
        )
    _check_float16(hf_model, found)
    # All are made before the first takes its place, so that an error leaves the model whole.
    forms = {module: _form(name, module) for module, name in found.items()}
    layers = tuple(_describe(name, m, forms[m]) for m, name in found.items())
    skipped = tuple(
        Skipped(name, f"is a {type(m).__name__}, not ternary")
        for name, m in hf_model.named_modules()
        if isinstance(m, nn.Linear) and m not in forms
    )
    for parent in list(hf_model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is not None and child in forms:
                setattr(parent, child_name, forms[child])
    return AccelerateReport(layers, skipped)


def _kinds() -> tuple[type[nn.Module], type[nn.Module]]:
    bitnet = require("transformers.integrations.bitnet", extra="hf")
    return bitnet.BitLinear, bitnet.AutoBitLinear


def _check_float16(hf_model: nn.Module, found: dict[nn.Module, str]) -> None:
    config = getattr(hf_model, "config", None)
    if getattr(config, "hidden_act", None) != "relu2":
        return
    for name, parameter in hf_model.named_parameters():
        if parameter.dtype == torch.float16:
            raise ConfigurationError(
                f"{name} is float16, which cannot run a relu2 model: the square of an activation "
                "above 255 exceeds float16's largest number, 65504; load it in bfloat16 or float32",
                dtype="torch.float16",
                layers=len(found),
            )


def _form(name: str, module: Any) -> nn.Module:
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        raise ConfigurationError(f"{name} has no values here (meta device or offloaded)")
    try:
        with torch.no_grad():
            layer = _packed(module)
    except BitNetError as error:
        raise QuantizationError(f"{name}: {error}", module=name, **error.context) from error
    if module.rms_norm is None:
        return layer.train(module.training)
    gain, eps = module.rms_norm.weight, module.rms_norm.variance_epsilon
    norm = RMSNorm(module.in_features, eps, gain.device, gain.dtype)
    norm.weight.data.copy_(gain)
    norm.weight.requires_grad_(False)
    return NormedLinear(norm, layer).train(module.training)


def _packed(module: Any) -> PackedBitLinear:
    n, bias = module.out_features, module.bias
    if not hasattr(module, "online_quant"):
        stored = _scale(module.weight_scale)
        return PackedBitLinear(module.weight, torch.ones_like(stored) / stored, n, bias)
    if module.online_quant:
        codes, w_scale = quantize_pack_weight(module.weight, "matrix")
        return PackedBitLinear(codes, w_scale, n, bias)
    w_scale = _scale(module.weight_scale)
    if bias is not None:
        # transformers computes (x @ t + bias) * w_scale.
        bias = bias.to(torch.float32) * w_scale
    return PackedBitLinear(pack_codes(_codes(module.weight)), w_scale, n, bias)


def _codes(weight: Tensor) -> Tensor:
    """Return floats that are codes as int8."""
    odd = ~((weight == -1) | (weight == 0) | (weight == 1))
    if bool(odd.any()):
        row, column = odd.nonzero()[0].tolist()
        raise QuantizationError(
            f"weight[{row}, {column}] is {float(weight[row, column])!r}; an offline AutoBitLinear "
            "holds -1, 0 and 1"
        )
    return weight.to(torch.int8)


def _scale(stored: Tensor) -> Tensor:
    scale = stored.detach().reshape(1).to(torch.float32)
    if not (bool(torch.isfinite(scale).all()) and float(scale) > 0):
        raise QuantizationError(
            f"weight_scale is {float(scale)}; a scale must be finite and positive"
        )
    return scale


def _describe(name: str, module: Any, form: nn.Module) -> AcceleratedLayer:
    kind = "BitLinear"
    if hasattr(module, "online_quant"):
        kind = f"AutoBitLinear {'online' if module.online_quant else 'offline'}"
    layer = form.linear if isinstance(form, NormedLinear) else form
    held = sum(t.nbytes for t in layer.buffers())
    return AcceleratedLayer(
        name, kind, module.out_features, module.in_features, module.weight.nbytes, held
    )
