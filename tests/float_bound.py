"""The bound of ``ops/float_linear.py``, for tests: how far two orders of summation may be apart."""

import torch

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def sum_error(x, weight, bias=None):
    """Bound |acc - real| for each output, in float64, while nothing overflows."""
    c = x.shape[-1] + 8
    gamma = c * 2.0**-24 / (1 - c * 2.0**-24)
    size = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        size = size + bias.double().abs()
    return gamma * size + c * 2.0**-149


def product_bound(x, weight, bias, y):
    """Bound the difference of ``y`` from another backend's result, as the contract writes it."""
    v = UNIT_ROUNDOFF[y.dtype]
    return 2 * sum_error(x, weight, bias) * (1 + v) + 2 * v * y.double().abs() + 2.0**-24


def exact_product(x, weight, bias=None):
    """Return the product in float64, whose own error is 2^-29 of the bound's."""
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()
