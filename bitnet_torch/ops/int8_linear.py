"""Linear layer on quantised activations and an int8 head: the contract and the reference.

Maths (``fl32`` rounds once to float32, ``rne_dtype`` once to the output dtype)::

    acc[m, n] = sum_k  x_q[m, k] * h[n, k]                       exact, int32
    y[m, n]   = rne_dtype(fl32(fl32(acc) * fl32(x_scale[m] * h_scale[n])))

``|acc| <= 128 * 127 * K`` is below 2^31 for K <= 131072; longer rows are refused. It may be above
2^24, so ``fl32(acc)`` is a rounding.

==========  ===========  ========  ================================================
argument    shape        dtype     meaning
==========  ===========  ========  ================================================
x_q         (..., K)     int8      activation codes in [-128, 127], any strides
x_scale     (...)        float32   activation quantum per token
h           (N, K)       int8      codes of ``quantize_head``, in [-127, 127]; what
                                   -128 gives is not defined
h_scale     (N,)         float32   quantum of each row
dtype       --           --        float32, bfloat16 or float16
y           (..., N)     dtype     contiguous
==========  ===========  ========  ================================================

Source: Jacob et al. 2017 (arXiv:1712.05877), section 2.2; the rounding order is this project's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import check_dtype, check_float_dtype, check_k, check_same_device
from bitnet_torch.ops._registry import declare


def check_head(h: Tensor, h_scale: Tensor, k: int) -> None:
    """Raise unless ``h`` (N, K) and ``h_scale`` (N,) are an int8 head of K = ``k`` inputs."""
    check_dtype("h", h, torch.int8)
    check_dtype("h_scale", h_scale, torch.float32)
    if h.dim() != 2 or h.shape[1] != k:
        raise ShapeError(f"h must be (N, K) = (N, {k}), got {tuple(h.shape)}")
    if h_scale.shape != h.shape[:1]:
        raise ShapeError(f"h_scale must be (N,) = ({h.shape[0]},), got {tuple(h_scale.shape)}")
    check_k("h", k)


def _check(x_q: Tensor, x_scale: Tensor, h: Tensor, h_scale: Tensor, dtype: torch.dtype) -> None:
    check_dtype("x_q", x_q, torch.int8)
    check_dtype("x_scale", x_scale, torch.float32)
    if x_q.dim() < 1 or x_scale.shape != x_q.shape[:-1]:
        raise ShapeError(
            f"x_scale must have x_q's leading shape {tuple(x_q.shape[:-1])}, "
            f"got {tuple(x_scale.shape)}"
        )
    check_head(h, h_scale, x_q.shape[-1])
    check_float_dtype("dtype", dtype)
    check_same_device(x_q=x_q, x_scale=x_scale, h=h, h_scale=h_scale)


def _fake(x_q: Tensor, x_scale: Tensor, h: Tensor, h_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty((*x_q.shape[:-1], h.shape[0]), dtype=dtype, device=x_q.device)


@declare(
    "int8_linear(Tensor x_q, Tensor x_scale, Tensor h, Tensor h_scale, ScalarType dtype) -> Tensor",
    check=_check,
    fake=_fake,
)
def int8_linear(
    x_q: Tensor, x_scale: Tensor, h: Tensor, h_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute ``x_q @ h.T`` and scale it back to real units. See the module docstring."""
    # Sums below 2^31 are exact in float64, which is faster than integers; MPS has none.
    carrier = torch.int32 if x_q.device.type == "mps" else torch.float64
    # Through int32, because a float sum of zeros may be -0.0.
    acc = (x_q.to(carrier) @ h.to(carrier).T).to(torch.int32)
    return (acc.to(torch.float32) * (x_scale[..., None] * h_scale)).to(dtype)
