"""Per-token int8 quantisation of activations: the contract and the reference.

Maths, per row, in float32 whatever the input dtype (``fl32`` rounds once to float32,
``rne`` rounds to the nearest integer, ties to even)::

    amax    = max(max_k |x_k|, 1e-5)
    inv     = fl32(fl32(1 / amax) * 127)               two roundings
    x_q     = int8(clamp(rne(fl32(x * inv)), -128, 127))
    x_scale = fl32(amax / 127)                          a true division

``real = x_q * x_scale``. A row that holds a NaN, an infinity or a value above 2^126 (whose
reciprocal would be subnormal) gets ``x_q = 0`` and ``x_scale = NaN``: what is computed from
it is NaN, never a plausible number. A row without elements is a row of zeros.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
x           (..., K)     float32, bfloat16,       activations, any strides
                         float16
x_q         (..., K)     int8                     codes, contiguous
x_scale     (...)        float32                  activation quantum per token
==========  ===========  =======================  ===================================

Source: Wang et al. 2024, "BitNet b1.58" (arXiv:2402.17764), section 2. The order of the two
roundings in ``inv`` is what PyTorch computes for ``127 / amax``, which transformers uses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_k
from bitnet_torch.ops._registry import declare

MIN_AMAX = 1e-5
MAX_AMAX = 2.0**126


def _check(x: Tensor) -> None:
    check_dtype("x", x, *FLOATS)
    if x.dim() < 1:
        raise ShapeError("x must have at least one dimension, got a scalar")
    check_k("x", x.shape[-1])


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device),
    )


@declare("quantize_activation(Tensor x) -> (Tensor, Tensor)", check=_check, fake=_fake)
def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row of ``x`` to int8 by its largest magnitude. See the module docstring."""
    x = x.to(torch.float32, memory_format=torch.contiguous_format)
    peak = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    bad = ~(peak <= MAX_AMAX)
    amax = peak.clamp_min(MIN_AMAX).masked_fill(bad, 1.0)
    # Tensor / tensor: PyTorch computes `number / tensor` and, on CUDA, `tensor / number`
    # through a reciprocal, which rounds differently.
    inv = torch.ones_like(amax) / amax * 127.0
    x_scale = (amax / torch.full_like(amax, 127.0)).masked_fill(bad, float("nan"))
    x = x.masked_fill(bad[..., None], 0.0)
    x_q = (x * inv[..., None]).round().clamp(-128, 127).to(torch.int8)
    return x_q.contiguous(), x_scale
