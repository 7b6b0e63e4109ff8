"""A live check of the promise: packed and training form compute the same bits."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitnet_torch.nn import BitLinear, PackedBitLinear


@dataclass(frozen=True)
class Comparison:
    """The logits of both forms of a model, compared bit by bit.

    Attributes:
        logits: Number compared.
        different: Number that differ.
    """

    logits: int
    different: int

    @property
    def same(self) -> bool:
        """Whether every bit is the same."""
        return not self.different


@dataclass(frozen=True)
class TernaryWeights:
    """What the ternary layers of a model hold.

    Attributes:
        weights: Number of ternary weights.
        packed_bytes: What their codes and scales take.
        float16_bytes: What the same layers would take in float16.
    """

    weights: int
    packed_bytes: int
    float16_bytes: int


def training_form(model: nn.Module) -> nn.Module:
    """Return a copy with every PackedBitLinear replaced by a BitLinear that packs to it.

    Raises:
        QuantizationError: Some layer's codes and scale come from no float weights.
    """
    twin = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, PackedBitLinear):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, _latent_layer(layer))
    return twin.eval()


@torch.inference_mode()
def compare_forms(model: nn.Module, ids: Tensor) -> Comparison:
    """Run ``model`` and its training form on ``ids`` (B, T) and compare their logits."""
    packed, trained = (form(ids).view(torch.int32) for form in (model, training_form(model)))
    return Comparison(packed.numel(), int((packed != trained).sum()))


def count_ternary(model: nn.Module) -> TernaryWeights:
    """Add up the PackedBitLinear layers of ``model``."""
    layers = [m for m in model.modules() if isinstance(m, PackedBitLinear)]
    weights = sum(m.out_features * m.in_features for m in layers)
    packed = sum(m.prepacked.nbytes + m.weight_scale.nbytes for m in layers)
    return TernaryWeights(weights, packed, 2 * weights)


def _latent_layer(layer: PackedBitLinear) -> BitLinear:
    weight = layer.latent_weight()
    granularity = "row" if layer.weight_scale.numel() > 1 else "matrix"
    twin = BitLinear(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        device=weight.device,
        granularity=granularity,
    )
    twin.weight = nn.Parameter(weight)
    if layer.bias is not None:
        twin.bias = nn.Parameter(layer.bias.clone())
    return twin
