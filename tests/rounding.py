"""Whether a float32 sum of products, rounded to a dtype, is as near to the exact one as it owes."""

import torch
from torch import Tensor

UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
# Half a quantum of the subnormal numbers.
UNDERFLOW = {torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25, torch.float32: 2.0**-150}


def is_sum(got: Tensor, a: Tensor, b: Tensor) -> bool:
    """Return whether ``got`` is ``a @ b`` (float32 factors) summed in float32, in any order.

    Each of n products and n - 1 additions is rounded, which adds up to n * 2^-24 of the sum of
    magnitudes, and one more for what is of second order; products may be subnormal. Then
    comes one rounding to the dtype of ``got``. Sums that may overflow on the way are not judged;
    infinite and NaN terms are: they do not depend on the order.
    """
    n, a, b = a.shape[-1], a.double(), b.double()
    exact, size = a @ b, a.abs() @ b.abs()
    bound = (n + 1) * 2.0**-24 * size + n * 2.0**-149
    bound = bound + UNIT_ROUNDOFF[got.dtype] * (exact.abs() + bound) + UNDERFLOW[got.dtype]
    special = ~exact.isfinite()
    limit = torch.finfo(got.dtype).max / 2
    fine = ((got.double() - exact).abs() <= bound) | (special.logical_not() & (size > limit))
    same = (got.isnan() & exact.isnan()) | (got.double() == exact)
    return got.shape == exact.shape and bool(torch.where(special, same, fine).all())


def is_grad_input(got: Tensor, grad: Tensor, t: Tensor, w_scale: Tensor) -> bool:
    """Return whether ``got`` is what ternary_linear_grad_input's contract says."""
    m = grad.shape[:-1].numel()
    g = grad.float().reshape(m, grad.shape[-1]) * w_scale
    shaped = got.shape == (*grad.shape[:-1], t.shape[1])
    return shaped and is_sum(got.reshape(m, t.shape[1]), g, t.float())


def is_grad_weight(got: Tensor, grad: Tensor, x_q: Tensor, x_scale: Tensor) -> bool:
    """Return whether ``got`` is what ternary_linear_grad_weight's contract says."""
    m = x_scale.numel()
    x = (x_q.float() * x_scale[..., None]).reshape(m, x_q.shape[-1])
    return is_sum(got, grad.float().reshape(m, grad.shape[-1]).T, x)
