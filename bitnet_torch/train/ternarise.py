"""Post-training ternarisation: what you get without quantisation-aware training.

Each method replaces the linear weights of a trained full-precision model by the nearest
matrix, in some sense, of the form ``scale * t`` with ``t`` in {-1, 0, 1}. Activations stay in
full precision, which favours the method. These are the baselines that a ternary model has to
beat; they are no way to make one.

==================  ==========================================================================
absmean matrix      scale mean|W|, threshold half of it: BitNet's own quantiser, one scale
absmean row         the same with a scale per output row
TWN row             threshold 0.7 mean|w|, scale the mean of what exceeds it (Li et al. 2016)
exact L2 row        the scale and codes of least squared error, found by sorting
==================  ==========================================================================

The last one: for a fixed set of k kept weights the best scale is their mean magnitude, which
removes ``(sum of them)^2 / k`` of the squared norm. For each k the best set is the k largest,
so one pass over the sorted magnitudes finds the optimum.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import is_plain_linear
from bitnet_torch.ops import quantize_weight

TWN_THRESHOLD = 0.7


def absmean_matrix(weight: Tensor) -> Tensor:
    """Return ``weight`` (N, K) as one mean magnitude times codes."""
    t, scale = quantize_weight(weight, "matrix")
    return t * scale


def absmean_row(weight: Tensor) -> Tensor:
    """Return ``weight`` (N, K) as a mean magnitude per row times codes."""
    t, scale = quantize_weight(weight, "row")
    return t * scale[:, None]


def twn_row(weight: Tensor) -> Tensor:
    """Return ``weight`` (N, K) by Ternary Weight Networks' rule, per row."""
    magnitude = weight.abs()
    kept = magnitude > TWN_THRESHOLD * magnitude.mean(1, keepdim=True)
    scale = (magnitude * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
    return weight.sign() * kept * scale


def exact_l2_row(weight: Tensor) -> Tensor:
    """Return the matrix of ternary rows nearest to ``weight`` (N, K) in squared error."""
    ordered, order = weight.abs().double().sort(1, descending=True)
    sums = ordered.cumsum(1)
    counts = torch.arange(1, weight.shape[1] + 1, dtype=torch.float64, device=weight.device)
    best = (sums.square() / counts).argmax(1, keepdim=True)
    scale = sums.gather(1, best) / (best + 1)
    # By rank and not by magnitude: equal magnitudes at the cut are not all kept.
    kept_in_order = counts - 1 <= best
    kept = torch.zeros_like(kept_in_order).scatter(1, order, kept_in_order)
    return (weight.sign() * kept * scale).to(weight.dtype)


METHODS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "absmean matrix": absmean_matrix,
        "absmean row": absmean_row,
        "TWN row": twn_row,
        "exact L2 row": exact_l2_row,
    }
)


@torch.no_grad()
def ternarised(model: nn.Module, method: str, exclude: str = "lm_head") -> nn.Module:
    """Return a copy of ``model`` whose linear weights are ternarised by ``method``.

    Args:
        model: In full precision; its ``nn.Linear`` layers are replaced in the copy.
        method: A name in :data:`METHODS`.
        exclude: Name of the layer that stays, at any depth: what ``convert`` leaves alone too.

    Raises:
        ConfigurationError: The method is unknown, or there is no layer to ternarise.
    """
    if method not in METHODS:
        raise ConfigurationError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    result = copy.deepcopy(model)
    layers = [
        module
        for name, module in result.named_modules()
        if is_plain_linear(module) and name.rpartition(".")[2] != exclude
    ]
    if not layers:
        raise ConfigurationError(f"{type(model).__name__} has no nn.Linear to ternarise")
    for layer in layers:
        layer.weight.copy_(METHODS[method](layer.weight))
    return result
