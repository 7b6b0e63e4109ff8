"""Root-mean-square normalisation with defined bits: the contract, the reference, the gradient.

Maths, per row, in float32 whatever the input dtype (``fl32`` rounds once to float32, ``rne``
to the nearest integer, ties to even, ``rne_dtype`` once to x's dtype)::

    a  = max_k |x_k| = f * 2^e with 0.5 <= f < 1;   then e = max(e, -40)
    u  = int32(rne(x * 2^(22 - e)))                 |u| <= 2^22
    S  = sum_k u_k * u_k                            exact, int64
    ms = ldexp(fl32(fl32(S) / fl32(K)), 2 * (e - 22))
    r  = fl32(1 / fl32(sqrt(fl32(ms + fl32(eps)))))
    y  = rne_dtype(fl32(fl32(weight) * fl32(rne_dtype(fl32(x * r)))))

``ms`` is the mean square as a sum of integers, so threads, blocks, shards and devices cannot
change its bits; ``S <= 2^44 * 2^17``. With ``c = a / sqrt(mean x^2)``, which is at most
sqrt(K), it is the mean square within a factor of ``1 +- c * 2^-20`` (a term is off by half a
quantum of at most ``a * 2^-21``). Below ``e = -40`` the mean square is far below the smallest eps.

A row that holds a NaN, an infinity or a magnitude of 2^63 or more becomes NaN.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
x           (..., K)     float32, bfloat16,       rows, any strides, K <= 131072
                         float16
weight      (K,)         float32, bfloat16,       gain, any of the three whatever
                         float16                  x's is
eps         --           float                    added to the mean square; finite,
                                                  >= 1e-12
y           (..., K)     x's                      contiguous
==========  ===========  =======================  ===================================

The gradient is that of the real function, the roundings counting as the identity. With G the
gradient of y, ``n = x * r`` and ``H = G * weight``, in float32::

    dx = r * (H - n * mean_k(H * n))        dweight = sum over rows of G * n

Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization" (arXiv:1910.07467); the
rounding before the weight is transformers' (LlamaRMSNorm), the fixed-point sum is this project's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_k, check_same_device
from bitnet_torch.ops._exact import frexp_exponent, pow2, sqrt_rn
from bitnet_torch.ops._registry import Gradient, declare

MIN_EPS = 1e-12
MAX_MAGNITUDE = 2.0**63
_MIN_EXPONENT = -40
_TERM_BITS = 22


def check_norm(x: Tensor, weight: Tensor, eps: float) -> None:
    """Raise unless ``x`` (..., K) can be normalised with this weight and eps."""
    check_dtype("x", x, *FLOATS)
    check_dtype("weight", weight, *FLOATS)
    if x.dim() < 1:
        raise ShapeError("x must have at least one dimension, got a scalar")
    check_k("x", x.shape[-1])
    if weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        raise ShapeError(f"weight must be (K,) = ({x.shape[-1]},), got {tuple(weight.shape)}")
    check_eps(eps)
    check_same_device(x=x, weight=weight)


def check_eps(eps: float) -> None:
    """Raise ConfigurationError unless ``eps`` is finite and at least 1e-12."""
    if not MIN_EPS <= eps < math.inf:
        raise ConfigurationError(f"eps must be finite and at least {MIN_EPS}, got {eps}", eps=eps)


def _fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


@once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    n, r = _normalised(x.to(torch.float32), ctx.eps)
    g = grad.to(torch.float32)
    dx = dweight = None
    if ctx.needs_input_grad[0]:
        dx = input_gradient(g, n, r, weight.to(torch.float32)).to(x.dtype)
    if ctx.needs_input_grad[1]:
        dweight = weight_gradient(g, n).to(weight.dtype)
    return dx, dweight, None


def input_gradient(g: Tensor, n: Tensor, r: Tensor, weight: Tensor) -> Tensor:
    """Return dx (..., K) for the gradient ``g`` of y, in the dtype of all of them."""
    h = g * weight
    return r * (h - n * (h * n).mean(-1, keepdim=True))


def weight_gradient(g: Tensor, n: Tensor) -> Tensor:
    """Return dweight (K,) for the gradient ``g`` of y."""
    return (g * n).reshape(-1, n.shape[-1]).sum(0)


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the n of the forward pass for float32 ``x``, and r (..., 1) within 2^-22 of it.

    From the op itself, which a backend makes fast and whose range a second formula would not have.
    """
    n = rms_norm(x, torch.ones(x.shape[-1], device=x.device), eps)
    if not x.shape[-1]:
        return n, x.new_zeros((*x.shape[:-1], 1))
    # Rounding is monotonic: the largest n is that of the largest x, rounded once.
    peak, largest = (t.abs().amax(-1, keepdim=True) for t in (x, n))
    # Of smaller rows the mean square is below 2^-40 of the smallest eps.
    tiny = peak < 2.0**_MIN_EXPONENT
    return n, torch.where(tiny, 1 / math.sqrt(eps), largest / peak)


@declare(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    check=check_norm,
    fake=_fake,
    gradient=Gradient(_setup, _backward),
)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row of ``x`` by its root mean square. See the module docstring."""
    scaled = (x.to(torch.float32) * _inverse_rms(x, eps)).to(x.dtype)
    y = (weight.to(torch.float32) * scaled.to(torch.float32)).to(x.dtype)
    return y.contiguous()


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return r (..., 1), float32: NaN for a row that cannot be normalised."""
    x = x.detach().to(torch.float32)
    if not x.shape[-1]:
        return x.new_zeros((*x.shape[:-1], 1))
    peak = x.abs().amax(-1, keepdim=True)
    bad = ~(peak < MAX_MAGNITUDE)
    e = frexp_exponent(peak.masked_fill(bad, 1.0)).clamp_min(_MIN_EXPONENT)
    u = (x.masked_fill(bad, 0.0) * pow2(_TERM_BITS - e)).round().to(torch.int64)
    total = (u * u).sum(-1, keepdim=True).to(torch.float32)
    # 2^(2 * (e - 22)) is as small as 2^-124 and the quotient may be below 1: ms may be a
    # subnormal, flushed or not, and vanishes beside eps either way.
    scale = pow2(e - _TERM_BITS)
    ms = total / torch.full_like(total, x.shape[-1]) * (scale * scale)
    root = sqrt_rn(ms + eps)
    return (torch.ones_like(root) / root).masked_fill(bad, float("nan"))
