"""What the weights file of a model will hold: each tensor made when it is written.

Ternary layers are stored in one of two forms (:mod:`bitnet_torch.io.hf_quantization`). A packed
layer with a bias is stored for the class BitLinear, whose bias is added as it is: in the other
form it would be divided by the scale, and rounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitnet_torch.errors import CheckpointError, ConfigurationError, QuantizationError
from bitnet_torch.io.hf_quantization import Quantization
from bitnet_torch.io.names import file_name
from bitnet_torch.io.scales import METADATA_KEY, ExactScale, describe_scale, render_scales
from bitnet_torch.io.tensor_stream import TensorPlan
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, NormedLinear, PackedBitLinear, is_plain_linear
from bitnet_torch.nn.storable import check_storable
from bitnet_torch.quant import WeightQuantizer

Ternary = BitLinear | PackedBitLinear
_BLANK = ExactScale("0" * 8, "0" * 64)


@dataclass
class Contents:
    """The plan of a weights file.

    Attributes:
        plans: Its tensors.
        exact_scales: What its metadata will say; complete once the tensors are written.
        packed: Names of the layers that ``exact_scales`` will have.
    """

    plans: list[TensorPlan] = field(default_factory=list)
    exact_scales: dict[str, ExactScale] = field(default_factory=dict)
    packed: list[str] = field(default_factory=list)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        return _metadata(self.exact_scales)

    @property
    def metadata_bytes(self) -> int:
        """Length of the metadata as JSON, which is known before the scales are."""
        return len(json.dumps(_metadata(dict.fromkeys(self.packed, _BLANK))))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(plan.nbytes for plan in self.plans)

    def add(self, name: str, tensor: Tensor) -> None:
        """Plan a tensor that exists."""
        self.plans.append(_plan(name, tensor.shape, tensor.dtype, lambda: tensor))


def ternary_layers(model: CausalLM) -> dict[str, Ternary]:
    """Return the ternary layers of a model by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Ternary)}


def describe_quantization(
    model: CausalLM, ternary: dict[str, Ternary], packed: bool
) -> Quantization | None:
    """Return how a file shall store the ternary layers.

    Raises:
        CheckpointError: A layer does not fit the form.
        ConfigurationError: There is nothing to pack.
    """
    check_storable(model, as_codes=packed)
    for name, layer in ternary.items():
        _check_layer(name, layer, packed)
    if packed and not ternary:
        raise ConfigurationError("the model has no ternary layer to pack; save it as 'hf-master'")
    if not ternary:
        return None
    kept = [n for n, m in model.named_modules() if is_plain_linear(m)]
    return Quantization(
        packed,
        inverse=packed and any(layer.bias is not None for layer in ternary.values()),
        not_converted=tuple(dict.fromkeys(("lm_head", *kept))),
        norm_eps=_norm_eps(model, ternary),
    )


def _check_layer(name: str, layer: Ternary, packed: bool) -> None:
    if name == "lm_head":
        raise CheckpointError(
            "lm_head is ternary; the layout keeps the head in full precision, as `convert` does "
            "unless `exclude` says otherwise",
            module="lm_head",
        )
    if isinstance(layer, BitLinear) and layer.granularity != "matrix":
        raise CheckpointError(f"{name} has a scale per row; the layout has one per matrix")
    if isinstance(layer, PackedBitLinear) and layer.weight_scale.numel() != 1:
        raise CheckpointError(f"{name} has a scale per row; the layout has one per matrix")
    if packed and layer.out_features % 4:
        raise CheckpointError(
            f"{name} has {layer.out_features} outputs; hf-packed needs a multiple of 4",
            module=name,
            out_features=layer.out_features,
        )


def _norm_eps(model: CausalLM, ternary: dict[str, Ternary]) -> float | None:
    """Return the eps of the norms inside ternary layers: of all of them, or there are none."""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, NormedLinear)}
    if not norms:
        return None
    odd = sorted({f"{name}.linear" for name in norms} ^ set(ternary))
    eps = {norm.rms_norm.eps for norm in norms.values()}
    if odd or len(eps) > 1:
        what = f"{odd[0]} is an exception" if odd else f"there are {sorted(eps)}"
        raise CheckpointError(
            f"the layout has a norm of one eps in every ternary layer or in none; {what}"
        )
    return eps.pop()


@torch.no_grad()
def plan_contents(
    model: CausalLM, ternary: dict[str, Ternary], quantization: Quantization | None
) -> Contents:
    """Return the tensors of a file that stores the model so.

    Raises:
        ConfigurationError: A parameter has no values.
        QuantizationError: A weight is not finite.
    """
    contents = Contents()
    # What a quantiser has learnt shows in the codes and scales.
    quantizers = {n for n, m in model.named_modules() if isinstance(m, WeightQuantizer)}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ConfigurationError(f"{name} is on the meta device and has no values to save")
        if name.rpartition(".")[0] not in ternary.keys() | quantizers:
            contents.add(file_name(name), parameter)
    for name, layer in ternary.items():
        stored = file_name(name)
        if layer.bias is not None:
            contents.add(f"{stored}.bias", layer.bias)
        if quantization is not None and quantization.packed:
            _plan_packed(contents, stored, layer, quantization.inverse)
        else:
            _plan_master(contents, stored, layer)
    return contents


def _plan_packed(contents: Contents, name: str, layer: Ternary, inverse: bool) -> None:
    packed = layer.packed() if isinstance(layer, BitLinear) else layer
    scale = packed.weight_scale.reshape(1)
    stored = torch.ones_like(scale) / scale if inverse else scale

    def codes() -> Tensor:
        weight = packed.weight
        contents.exact_scales[name] = describe_scale(scale, weight)
        return weight

    shape = torch.Size((packed.out_features // 4, packed.in_features))
    contents.packed.append(name)
    contents.plans.append(_plan(f"{name}.weight", shape, torch.uint8, codes))
    contents.add(f"{name}.weight_scale", stored.to(torch.bfloat16))


def _plan_master(contents: Contents, name: str, layer: Ternary) -> None:
    if isinstance(layer, BitLinear):
        contents.add(f"{name}.weight", layer.weight)
        return

    def latent() -> Tensor:
        try:
            return layer.latent_weight()
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}", module=name, **error.context) from error

    shape = torch.Size((layer.out_features, layer.in_features))
    contents.plans.append(_plan(f"{name}.weight", shape, torch.float32, latent))


def _plan(
    name: str, shape: torch.Size, dtype: torch.dtype, make: Callable[[], Tensor]
) -> TensorPlan:
    def pieces() -> Iterator[Tensor]:
        with torch.no_grad():
            yield make()

    return TensorPlan(name, tuple(shape), dtype, pieces)


def _metadata(scales: dict[str, ExactScale]) -> dict[str, str]:
    own = {METADATA_KEY: render_scales(scales)} if scales else {}
    return {"format": "pt", **own}
