"""RMSNorm and activation quantisation in one pass over a row: the contract and the reference.

By definition the composition of its parts, with the rounding to x's dtype between them::

    x_q, x_scale = quantize_activation(rms_norm(x, weight, eps))

A fused version saves the normalised row's way to memory and back. A row that has no norm gets
``x_q = 0`` and ``x_scale = NaN``.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
x           (..., K)     float32, bfloat16,       rows, any strides, K <= 131072
                         float16
weight      (K,)         float32, bfloat16,       gain
                         float16
eps         --           float                    finite, >= 1e-12
x_q         (..., K)     int8                     codes, contiguous
x_scale     (...)        float32                  activation quantum per token
==========  ===========  =======================  ===================================

Source: the contracts of ``rms_norm`` and ``quantize_activation``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.rms_norm import check_norm, rms_norm


def _fake(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device),
    )


@declare(
    "rms_norm_quantize(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    check=check_norm,
    fake=_fake,
)
def rms_norm_quantize(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise each row of ``x`` and quantise it to int8. See the module docstring."""
    y = rms_norm.impls["reference"](x, weight, eps)
    x_q, x_scale = quantize_activation.impls["reference"](y)
    return x_q, x_scale
