"""The backward pass of a ternary layer in int8: less time, and a gradient with noise.

With ``backward="int8"`` the gradient G of the output is rounded to int8 as well, by a coin and
not to the nearest, so that both products are sums of integers. With u[m, n] uniform in (0, 1)::

    c[m] = max_n |G[m, n] * w_scale[n]| / 127       q[m, n] = floor(G[m, n] * w_scale[n] / c[m] + u)
    dX   = c[m] * sum_n q[m, n] * t[n, k]

    d[n] = max_m |G[m, n] * x_scale[m]| / 127       p[m, n] = floor(G[m, n] * x_scale[m] / d[n] + u)
    dW   = d[n] * sum_m p[m, n] * x_q[m, k]

**Unbiased.** ``floor(v + u)`` is v on average, so dX and dW are, over the draws of u, the
straight-through gradients of ``BitLinear``: their errors average out over steps instead of
pulling in one direction, which rounding to the nearest would do to all that is below half
a quantum. u has 16 bits, which leaves a bias of at most 2^-17 quanta.

**How noisy.** A rounded value has a variance of at most 1/4 quantum^2. So an element of dX has
at most ``c[m]^2 / 4 * sum_n t[n, k]^2``, one of dW at most ``d[n]^2 / 4 * sum_m x_q[m, k]^2``.

**Reproducible.** u comes from PyTorch's generator of the device, so a seed fixes it, and from
there on everything is exact: the products are integers, for any number of threads. Each call
draws, so a step advances the generator; checkpoints of the generator's state include that.

A gradient that is not finite makes its row of dX and its row of dW NaN, which is what a
``GradScaler`` looks for. Weights, activations and the forward pass are not touched by this.

Source: Gupta et al. 2015 (arXiv:1502.02551) for stochastic rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bitnet_torch.ops.pack_codes import pack_codes, unpack_codes
from bitnet_torch.ops.ternary_linear import ternary_linear

BACKWARDS = ("float", "int8")

_LARGEST = 127.0
# Of smaller gradients the quantum would be subnormal; larger ones have no reciprocal.
_LEAST, _MOST = 2.0**-100, 2.0**120
# 128 * 127 * TOKENS < 2^31: more tokens are summed in pieces.
_TOKENS = 1 << 17
# The same for a float32 product: 2^24.
_FLOAT_TOKENS = 1 << 10


def noise_like(grad: Tensor) -> Tensor:
    """Return float32 of the shape of ``grad``, uniform in (0, 1) in steps of 2^-16."""
    count = grad.numel()
    # One draw makes four numbers: on a CPU drawing is what takes the time.
    words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), device=grad.device)
    u = words.view(torch.int16)[:count].reshape(grad.shape)
    return u.to(torch.float32).add_(32768.5).mul_(2.0**-16)


def grad_input(
    grad: Tensor, noise: Tensor, packed: Tensor, w_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return dX (..., K) of ``dtype`` for ``grad`` (..., N). See the module docstring."""
    q, scale = _rounded(grad.to(torch.float32) * w_scale, noise, -1)
    # The products of the forward pass, with the roles of N and K exchanged.
    transposed = pack_codes(unpack_codes(packed, grad.shape[-1]).T.contiguous())
    one = torch.ones((), device=grad.device)
    dx: Tensor = ternary_linear(q, scale, transposed, one, packed.shape[1], dtype)
    return dx


def grad_weight(
    grad: Tensor, noise: Tensor, x_q: Tensor, x_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return dW (N, K) of ``dtype`` for ``grad`` (..., N). See the module docstring."""
    tokens = x_scale.numel()
    rows = (grad.to(torch.float32) * x_scale[..., None]).reshape(tokens, grad.shape[-1])
    p, scale = _rounded(rows, noise.reshape(rows.shape), 0)
    total = _integer_product(p.T, x_q.reshape(tokens, x_q.shape[-1]))
    return (total * scale[:, None]).to(dtype)


def _rounded(values: Tensor, noise: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return int8 codes of ``values``, and their quantum along ``dim``, which is NaN for NaN."""
    if not values.shape[dim]:
        return values.to(torch.int8), values.sum(dim)
    peak = values.abs().amax(dim)
    bad = ~(peak <= _MOST)
    peak = peak.clamp(min=_LEAST).masked_fill(bad, 1.0)
    quanta = torch.full_like(peak, _LARGEST)
    codes = values * (quanta / peak).unsqueeze(dim)
    # Of a bad row nothing is used; what an int8 makes of NaN is nobody's promise.
    codes = codes.masked_fill_(bad.unsqueeze(dim), 0.0).add_(noise).floor_()
    codes = codes.clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return codes, (peak / quanta).masked_fill(bad, float("nan"))


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a`` (N, M) @ ``b`` (M, K), both int8, exact in int32 and then as float32."""
    step = _TOKENS if a.device.type in ("cpu", "cuda") else _FLOAT_TOKENS
    pieces = zip(a.split(step, 1), b.split(step, 0), strict=True)
    parts = [_product(left, right).to(torch.float32) for left, right in pieces]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    if not (a.numel() and b.numel()):
        return a.new_zeros((a.shape[0], b.shape[1]), dtype=torch.int32)
    if a.device.type == "cpu":
        return torch._int_mm(a, b)
    if a.device.type == "cuda":
        # Its library takes multiples of 8, and more than 16 rows.
        (n, m), k = a.shape, b.shape[1]
        rows, inner, columns = max(-n % 8, 24 - n), -m % 8, -k % 8
        padded = torch._int_mm(F.pad(a, (0, inner, 0, rows)), F.pad(b, (0, columns, 0, inner)))
        return padded[:n, :k]
    return (a.to(torch.float32) @ b.to(torch.float32)).to(torch.int32)
