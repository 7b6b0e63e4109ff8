"""The float head's k largest logits, found by reading an int8 head: contract, bound, reference.

By definition, to the bit, on every backend with its own ``float_linear``::

    values, ids = top_k(float_linear(x, weight, dtype=float32), k)

``x_q, x_scale = quantize_activation(x)`` and ``s = int8_linear(x_q, x_scale, h, h_scale)`` give
every row n a score, and a bound e says how far the float logit L can be from it. With T the k-th
largest of ``s - e``, at least k logits are T or more, so a row with ``s + e < T`` is below k others
and no candidate, whatever the ids. The rest are scored again by exactly ``float_linear``'s
arithmetic.

The bound. ``x^ = x_q * x_scale`` and ``w^ = h * h_scale`` are what the codes stand for, ``|.|`` is
the Euclidean norm, ``u = 2^-24``, ``gamma = c u / (1 - c u)`` with ``c = K + 8``. By
Cauchy-Schwarz, with the real numbers ``d = x . w`` and ``s* = x^ . w^``::

    |L - d|  <= gamma |x| |w| + c 2^-149                 any order of summation (float_linear.py)
    |d - s*| <= |x| |w - w^| + |x - x^| |w^|             d - s* = x . (w - w^) + (x - x^) . w^
    |s - s*| <= 3.01 u (|x| + |x - x^|) |w^|             three roundings, and |x^| <= |x| + |x - x^|

The two float32 operations ``s - e`` and ``s + e`` may be off by another
``1.01 u (|x| + |x - x^|) |w^|`` and ``u e``. So, with ``rho = 2^-18`` for the roundings of the
bound's own computation (fewer than 10 of relative size u, and sums in float64)::

    bounds[0, n] = max(fl32((1 + rho) (|w - w^| + gamma |w|)), 2^-100)      ``head_bounds``, at load
    bounds[1, n] = max(fl32((1 + rho) |w^|), 2^-100)
    a = max(fl32((1 + rho) |x|), 2^-100)
    b = max(fl32((1 + rho) (|x - x^| + 2^-21 (|x| + |x - x^|))), 2^-100)      2^-21 = 8 u > 4.02 u
    e = fl32(fl32(fl32(a * bounds[0, n]) + fl32(b * bounds[1, n])) + 2^-100)

2^-100 covers what is lost below float32's normal numbers. A row is always a candidate, and no
part of T, unless ``fl32(a * fl32(bounds[0, n] + bounds[1, n])) < 2^126`` (it is at least |x| |w|:
nothing can overflow) and s and e are finite. So rows of x or weight that are not finite are
handled, too: those of weight are scored again, those of x score every row again.

``rescored`` counts the candidates. |x| and |x - x^| are sums of float64 squares in the lanes and
the tree of ``float_linear``, so that the reference and the CPU kernels count the same; on another
backend the count may differ, the result may not.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
x           (..., K)     float32, bfloat16,       hidden states, any strides,
                         float16                  K <= 131072
weight      (N, K)       float32, bfloat16,       the float head
                         float16
h           (N, K)       int8                     ``quantize_head(weight)``
h_scale     (N,)         float32                  its other result
bounds      (2, N)       float32                  ``head_bounds(weight, h, h_scale)``
k           --           int                      0 <= k <= N
values      (..., k)     float32                  the largest logits, as ``top_k``
ids         (..., k)     int64                    their rows
rescored    (...)        int64                    rows that were scored again
==========  ===========  =======================  ===================================

Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", sections 2.2 and 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_same_device
from bitnet_torch.ops._registry import declare, forced_backend
from bitnet_torch.ops.float_linear import LANES, check_weight, float_linear
from bitnet_torch.ops.int8_linear import check_head, int8_linear
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.top_k import check_count, top_k

SLACK = 1 + 2.0**-18
LEAST = 2.0**-100
LIMIT = 2.0**126
SCORE_ERROR = 2.0**-21
# Elements of the head in float64 at a time: they stay in a cache.
_PIECE = 1 << 18


_MAKERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}


def register_head_bounds(make: Callable[[Tensor, Tensor, Tensor], Tensor], *, device: str) -> None:
    """Let ``make`` find the bounds of heads on ``device``; its arguments are checked."""
    _MAKERS[device] = make


def head_bounds(weight: Tensor, h: Tensor, h_scale: Tensor) -> Tensor:
    """Return the bounds (2, N), float32, of an int8 head, as the module docstring says.

    Args:
        weight: (N, K), the float head.
        h: (N, K) int8, its codes.
        h_scale: (N,) float32, its scales.

    Raises:
        ShapeError: A shape does not fit the others.
        DTypeError: A dtype is none of these.
    """
    check_dtype("weight", weight, *FLOATS)
    if weight.dim() != 2 or h.shape != weight.shape:
        raise ShapeError(f"h must be weight's {tuple(weight.shape)}, got {tuple(h.shape)}")
    check_head(h, h_scale, weight.shape[1])
    check_same_device(weight=weight, h=h, h_scale=h_scale)
    make = None if forced_backend() == "reference" else _MAKERS.get(weight.device.type)
    return (make or _head_bounds)(weight, h, h_scale)


def _head_bounds(weight: Tensor, h: Tensor, h_scale: Tensor) -> Tensor:
    """Find the bounds with PyTorch: sums in float64, in the order that it has on this device."""
    n, k = weight.shape
    c = (k + 8) * 2.0**-24
    bounds = torch.empty((2, n), dtype=torch.float32, device=weight.device)
    rows = max(1, _PIECE // max(k, 1))
    for start in range(0, n, rows):
        piece = slice(start, start + rows)
        w = weight[piece].to(torch.float64)
        # 7 bits by 24: exact.
        real = h[piece].to(torch.float64) * h_scale[piece, None].to(torch.float64)
        residual = (w - real).square().sum(-1).sqrt()
        bounds[0, piece] = (residual + c / (1 - c) * w.square().sum(-1).sqrt()) * SLACK
        bounds[1, piece] = real.square().sum(-1).sqrt() * SLACK
    return bounds.clamp_min_(LEAST)


def _check(x: Tensor, weight: Tensor, h: Tensor, h_scale: Tensor, bounds: Tensor, k: int) -> None:
    check_weight(x, weight)
    check_head(h, h_scale, x.shape[-1])
    if h.shape[0] != weight.shape[0]:
        raise ShapeError(f"h must have weight's {weight.shape[0]} rows, got {h.shape[0]}")
    check_dtype("bounds", bounds, torch.float32)
    if bounds.shape != (2, h.shape[0]):
        raise ShapeError(f"bounds must be (2, N) = (2, {h.shape[0]}), got {tuple(bounds.shape)}")
    check_count(k, h.shape[0])
    check_same_device(x=x, weight=weight, h=h, h_scale=h_scale, bounds=bounds)


def _fake(
    x: Tensor, weight: Tensor, h: Tensor, h_scale: Tensor, bounds: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    lead = x.shape[:-1]
    return (
        torch.empty((*lead, k), dtype=torch.float32, device=x.device),
        torch.empty((*lead, k), dtype=torch.int64, device=x.device),
        torch.empty(lead, dtype=torch.int64, device=x.device),
    )


@declare(
    "screened_top_k(Tensor x, Tensor weight, Tensor h, Tensor h_scale, Tensor bounds, int k) -> "
    "(Tensor, Tensor, Tensor)",
    check=_check,
    fake=_fake,
)
def screened_top_k(
    x: Tensor, weight: Tensor, h: Tensor, h_scale: Tensor, bounds: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``k`` largest logits of each row of ``x``. See the module docstring."""
    x_q, x_scale = quantize_activation.impls["reference"](x)
    s = int8_linear.impls["reference"](x_q, x_scale, h, h_scale, torch.float32)
    a, b = _token_bounds(x, x_q, x_scale)
    logits = float_linear.impls["reference"](x, weight, None, torch.float32)
    values, ids = top_k.impls["reference"](logits, k)
    if k == 0:
        return values, ids, torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    low, high = intervals(s, a, b, bounds)
    threshold = top_k.impls["reference"](low, k)[0][..., -1:]
    return values, ids, (high >= threshold).sum(-1)


def intervals(s: Tensor, a: Tensor, b: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends (..., N) of the interval that each float logit lies in.

    Args:
        s: (..., N) scores.
        a: (...) float32, as in the module docstring.
        b: (...) float32.
        bounds: (2, N).
    """
    first, second = bounds
    a, b = a[..., None], b[..., None]
    e = (a * first + b * second) + LEAST
    usable = (a * (first + second) < LIMIT) & s.isfinite() & e.isfinite()
    low, high = s - e, s + e
    return low.masked_fill(~usable, -math.inf), high.masked_fill(~usable, math.inf)


def _token_bounds(x: Tensor, x_q: Tensor, x_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b (...), float32."""
    wide = x.to(torch.float64)
    difference = wide - x_q.to(torch.float64) * x_scale[..., None].to(torch.float64)
    pairs = zip(_norms(wide), _norms(difference), strict=True)
    found = [(size * SLACK, (off + SCORE_ERROR * (size + off)) * SLACK) for size, off in pairs]
    both = torch.tensor(found, dtype=torch.float64, device=x.device).reshape(-1, 2)
    a, b = both.to(torch.float32).clamp_min(LEAST).reshape(*x.shape[:-1], 2).unbind(-1)
    return a, b


def _norms(x: Tensor) -> list[float]:
    """Return the Euclidean norm of each row of float64 ``x``, summed in lanes."""
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    steps = -(-rows.shape[1] // LANES)
    squares = F.pad(rows.square(), (0, steps * LANES - rows.shape[1]))
    lane = rows.new_zeros(rows.shape[0], LANES)
    for step in squares.reshape(rows.shape[0], steps, LANES).unbind(1):
        lane = lane + step
    half = lane[:, :4] + lane[:, 4:]
    sums = (half[:, 0] + half[:, 2]) + (half[:, 1] + half[:, 3])
    # Not torch's root, which need not be rounded correctly.
    return [math.sqrt(value) for value in sums.tolist()]
