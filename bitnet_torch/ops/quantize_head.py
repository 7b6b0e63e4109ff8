"""Int8 codes of a language-model head, one scale for each row: the contract and the reference.

Maths, per row, in float32 whatever the weight's dtype (``div_rn`` rounds correctly, ``rne`` to
the nearest integer, ties to even)::

    a       = max_k |weight[n, k]|
    h_scale = max(div_rn(a, 127), 1e-12)
    h       = int8(clamp(rne(div_rn(weight[n, k], h_scale)), -127, 127))

``real = h * h_scale``. A row with a weight that is not finite gets ``h = 0`` and ``h_scale =
NaN``: its scores are NaN, never a plausible number. A row without elements is a row of zeros.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
weight      (N, K)       float32, bfloat16,       the head, any strides, K <= 131072
                         float16
h           (N, K)       int8                     codes in [-127, 127], contiguous
h_scale     (N,)         float32                  quantum of each row
==========  ===========  =======================  ===================================

Source: Jacob et al. 2017 (arXiv:1712.05877), symmetric and per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_k
from bitnet_torch.ops._registry import declare

MIN_SCALE = 1e-12


def _check(weight: Tensor) -> None:
    check_dtype("weight", weight, *FLOATS)
    if weight.dim() != 2:
        raise ShapeError(f"weight must be (N, K), got {tuple(weight.shape)}")
    check_k("weight", weight.shape[1])


def _fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(weight.shape, dtype=torch.int8, device=weight.device),
        torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device),
    )


@declare("quantize_head(Tensor weight) -> (Tensor, Tensor)", check=_check, fake=_fake)
def quantize_head(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row of ``weight`` to int8 by its largest magnitude. See the docstring."""
    w = weight.to(torch.float32)
    peak = w.abs().amax(-1) if w.shape[1] else w.new_zeros(w.shape[0])
    bad = ~peak.isfinite()
    peak = peak.masked_fill(bad, 1.0)
    # Tensor / tensor: a device may divide by a number through its reciprocal.
    scale = (peak / torch.full_like(peak, 127.0)).clamp_min(MIN_SCALE)
    quotient = w.masked_fill(bad[:, None], 0.0) / scale[:, None]
    h = quotient.round().clamp(-127, 127).to(torch.int8)
    return h.contiguous(), scale.masked_fill(bad, float("nan"))
