"""The products of the backward pass: on every instruction set one order of sums."""

import pytest
import torch

from bitnet_torch.cpu import isa as switch
from bitnet_torch.ops import (
    pack_codes,
    quantize_activation,
    ternary_linear_grad_input,
    ternary_linear_grad_weight,
)
from tests.bits import same_bits
from tests.cpu.shapes import DTYPES, TOKENS
from tests.rounding import is_grad_input, is_grad_weight

# N and K around tiles of 6 rows, strips of 16 columns and blocks of 128 sums, 32 bytes of codes.
WEIGHTS = [(1, 1), (5, 16), (6, 17), (7, 15), (128, 32), (131, 33), (516, 48), (0, 5), (9, 0)]


def gradients(m, n, k, dtype, out):
    """Return arguments and results of both products."""
    g = torch.Generator().manual_seed(m + n + k)
    grad = torch.randn(m, n, generator=g).to(dtype)
    t = torch.randint(-1, 2, (n, k), generator=g, dtype=torch.int8)
    scale = torch.rand(n, generator=g) + 0.1
    x_q, x_scale = quantize_activation(torch.randn(m, k, generator=g))
    dx = ternary_linear_grad_input(grad, pack_codes(t), scale, out)
    dw = ternary_linear_grad_weight(grad, x_q, x_scale, out)
    return (dx, grad, t, scale), (dw, grad, x_q, x_scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_gradients_are_the_sums_of_their_contracts(isa, dtype, n, k):
    for i, m in enumerate(TOKENS):
        to_input, to_weight = gradients(m, n, k, dtype, DTYPES[i % 3])
        assert is_grad_input(*to_input)
        assert is_grad_weight(*to_weight)


def test_every_instruction_set_adds_up_in_the_same_order(built):
    for m, n, k in ((1, 7, 33), (130, 150, 40), (1100, 9, 16)):
        found = []
        for name in switch.available():
            with switch.forced(name):
                found.append([result[0] for result in gradients(m, n, k, *DTYPES[:1] * 2)])
        assert all(same_bits(dx, found[0][0]) and same_bits(dw, found[0][1]) for dx, dw in found)


def test_flushing_subnormals_changes_nothing(isa):
    grad, t = torch.randn(5, 9) * 2.0**-120, torch.ones(9, 16, dtype=torch.int8)
    arguments = grad, pack_codes(t), torch.tensor(2.0**-20), torch.float32
    want = ternary_linear_grad_input(*arguments)
    assert torch.any((want != 0) & (want.abs() < 2.0**-126))
    torch.set_flush_denormal(True)
    try:
        got = ternary_linear_grad_input(*arguments)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got, want)
