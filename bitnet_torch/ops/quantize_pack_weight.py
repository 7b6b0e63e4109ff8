"""Ternarise a weight matrix and pack its codes in one step: the contract and the reference.

By definition the composition of its parts::

    t, w_scale = quantize_weight(w, granularity)
    packed     = pack_codes(t)

A fused version never holds the int8 matrix t, which is four times the size of its packed form
and which every training step would write and read again.

===========  ===============  =======================  ==============================
argument     shape            dtype                    meaning
===========  ===============  =======================  ==============================
w            (N, K)           float32, bfloat16,       latent weights, any strides
                              float16
granularity  --               str                      "matrix" or "row"
packed       (ceil(N/4), K)   uint8                    exchange layout, see
                                                       ``pack_codes``
w_scale      () or (N,)       float32                  quantum of the matrix / row
===========  ===============  =======================  ==============================

Source: the contracts of ``quantize_weight`` and ``pack_codes``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.pack_codes import pack_codes
from bitnet_torch.ops.quantize_weight import check_weight, quantize_weight


def _fake(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    n, k = w.shape
    return (
        torch.empty((-(-n // 4), k), dtype=torch.uint8, device=w.device),
        torch.empty((n,) if granularity == "row" else (), dtype=torch.float32, device=w.device),
    )


@declare(
    'quantize_pack_weight(Tensor w, str granularity="matrix") -> (Tensor, Tensor)',
    check=check_weight,
    fake=_fake,
)
def quantize_pack_weight(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    """Ternarise ``w`` and pack its codes four to a byte. See the module docstring."""
    t, w_scale = quantize_weight.impls["reference"](w, granularity)
    return pack_codes.impls["reference"](t), w_scale
