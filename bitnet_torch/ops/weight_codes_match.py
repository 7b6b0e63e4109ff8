"""Are these the codes of this weight? The contract and the reference.

::

    match = every weight is finite and
            quantize_pack_weight(w, granularity) is (packed, w_scale) to the bit

Whoever keeps codes asks before each use whether they are still those of the weight: nothing in
PyTorch tells of every way to change one (``w.data``, a NumPy view and a pointer leave no trace).
The answer is exact, no checksum, and takes one reading of ``w`` where quantising takes several.

===========  ===============  =======================  ==============================
argument     shape            dtype                    meaning
===========  ===============  =======================  ==============================
w            (N, K)           float32, bfloat16,       latent weights, any strides
                              float16
packed       (ceil(N/4), K)   uint8                    exchange layout, see
                                                       ``pack_codes``
w_scale      () or (N,)       float32                  quantum of the matrix / row
granularity  --               str                      "matrix" or "row"
match        ()               bool
===========  ===============  =======================  ==============================

Source: the contract of ``quantize_pack_weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import check_dtype, check_packed, check_same_device
from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.quantize_pack_weight import quantize_pack_weight
from bitnet_torch.ops.quantize_weight import check_weight


def _check(w: Tensor, packed: Tensor, w_scale: Tensor, granularity: str = "matrix") -> None:
    check_weight(w, granularity)
    check_packed(packed, w.shape[1], w.shape[0])
    check_dtype("w_scale", w_scale, torch.float32)
    wanted = tuple(w.shape[:1]) if granularity == "row" else ()
    if tuple(w_scale.shape) != wanted:
        raise ShapeError(
            f"w_scale must be {wanted} for one scale per {granularity}, got {tuple(w_scale.shape)}"
        )
    check_same_device(w=w, packed=packed, w_scale=w_scale)


def _fake(w: Tensor, packed: Tensor, w_scale: Tensor, granularity: str = "matrix") -> Tensor:
    return torch.empty((), dtype=torch.bool, device=w.device)


@declare(
    "weight_codes_match(Tensor w, Tensor packed, Tensor w_scale, "
    'str granularity="matrix") -> Tensor',
    check=_check,
    fake=_fake,
)
def weight_codes_match(
    w: Tensor, packed: Tensor, w_scale: Tensor, granularity: str = "matrix"
) -> Tensor:
    """Return whether ``w`` quantises to exactly this. See the module docstring."""
    finite = torch.isfinite(w)
    # What is not finite cannot be quantised, and its answer is known.
    usable = w.masked_fill(~finite, 0.0)
    made, scale = quantize_pack_weight.impls["reference"](usable, granularity)
    match: Tensor = finite.all() & (made == packed).all() & (scale == w_scale).all()
    return match
