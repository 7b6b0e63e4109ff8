"""The int8 head and the choice from its scores, on every instruction set."""

import pytest
import torch

from bitnet_torch.ops import int8_linear, quantize_head, screened_top_k, top_k
from tests.bits import same_bits
from tests.cpu.shapes import DTYPES, INPUTS
from tests.ops.heads import MAKERS, head_of


def agree(op, *args):
    got, want = op(*args), op.impls["reference"](*args)
    got, want = ((t,) if isinstance(t, torch.Tensor) else t for t in (got, want))
    return all(same_bits(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_heads_quantise_to_the_reference_bits(isa, dtype, make):
    for n, k in ((1, 1), (5, 31), (3, 32), (7, 33), (2, 100), (3, 0), (0, 3)):
        assert agree(quantize_head, make(n, k).to(dtype))


@pytest.mark.parametrize("m", [1, 2, 5, 40])
def test_products_have_the_reference_bits(isa, m):
    for i, (n, k) in enumerate([(1, 1), (3, 31), (4, 32), (5, 33), (9, 64), (33, 257), (70, 0)]):
        x_q = torch.randint(-128, 128, (m, k), dtype=torch.int8)
        h = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        assert agree(int8_linear, x_q, torch.rand(m), h, torch.rand(n), DTYPES[i % 3])


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_screened_choices_have_the_reference_bits(isa, make):
    g = torch.Generator().manual_seed(4)
    for n, k_size, k in ((50, 33, 3), (65, 64, 1), (9, 5, 9)):
        x, weight = make(3, n, k_size, g)
        assert agree(screened_top_k, x, weight, *head_of(weight), k)


def test_choices_have_the_reference_bits(isa):
    x = torch.randn(5, 333)
    x[1, ::3] = float("nan")
    x[2] = x[2].round()
    for k in (0, 1, 7, 100, 332, 333):
        assert agree(top_k, x, k)


def test_flushing_subnormals_changes_nothing(isa):
    x, weight = torch.randn(3, 40) * 2.0**-70, torch.randn(30, 40) * 2.0**-65
    head = head_of(weight)
    want = screened_top_k(x, weight, *head, 5)
    torch.set_flush_denormal(True)
    try:
        got = screened_top_k(x, weight, *head, 5)
    finally:
        torch.set_flush_denormal(False)
    assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))
