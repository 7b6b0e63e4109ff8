"""Gate, optional sub-norm and quantisation in one pass over a row: the contract, the reference.

By definition the composition of its parts, with the roundings to the dtype of g between them::

    h = glu(g, u, activation)
    x_q, x_scale = quantize_activation(rms_norm(h, weight, eps))      with a weight
    x_q, x_scale = quantize_activation(h)                             without

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
g           (..., K)     float32, bfloat16,       gate before its activation, any
                         float16                  strides, K <= 131072
u           (..., K)     g's                      the other branch, any strides
weight      (K,)         float32, bfloat16,       gain of the sub-norm; None for a
                         float16                  model without one
eps         --           float                    finite, >= 1e-12, weight or not
activation  --           str                      "relu2" or "silu"
x_q         (..., K)     int8                     codes, contiguous
x_scale     (...)        float32                  activation quantum per token
==========  ===========  =======================  ===================================

With relu2 the bits are the same on every backend; with silu within one (see ``glu``).

Source: the contracts of ``glu``, ``rms_norm`` and ``quantize_activation``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import check_k
from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.glu import check_glu, glu
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.rms_norm import check_eps, check_norm, rms_norm


def _check(g: Tensor, u: Tensor, weight: Tensor | None, eps: float, activation: str) -> None:
    check_glu(g, u, activation)
    if g.dim() < 1:
        raise ShapeError("g must have at least one dimension, got a scalar")
    check_k("g", g.shape[-1])
    check_eps(eps)
    if weight is not None:
        check_norm(g, weight, eps)


def _fake(
    g: Tensor, u: Tensor, weight: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(g.shape, dtype=torch.int8, device=g.device),
        torch.empty(g.shape[:-1], dtype=torch.float32, device=g.device),
    )


@declare(
    "glu_norm_quantize(Tensor g, Tensor u, Tensor? weight, float eps, str activation) "
    "-> (Tensor, Tensor)",
    check=_check,
    fake=_fake,
)
def glu_norm_quantize(
    g: Tensor, u: Tensor, weight: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Gate, normalise and quantise each row. See the module docstring."""
    h = glu.impls["reference"](g, u, activation)
    if weight is not None:
        h = rms_norm.impls["reference"](h, weight, eps)
    x_q, x_scale = quantize_activation.impls["reference"](h)
    return x_q, x_scale
