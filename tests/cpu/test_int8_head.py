"""The int8 head and the choice from its scores, on every instruction set."""

import pytest
import torch

from bitnet_torch.cpu import isa as switch
from bitnet_torch.ops import (
    head_bounds,
    int8_linear,
    quantize_head,
    screened_top_k,
    top_k,
    use_backend,
)
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


@pytest.mark.parametrize("m", [1, 2, 5, 6, 7, 40, 400])
def test_products_have_the_reference_bits(product_isa, m):
    sizes = [(1, 1), (3, 31), (4, 32), (5, 33), (9, 64), (6, 100), (33, 257), (70, 0)]
    for i, (n, k) in enumerate(sizes):
        x_q = torch.randint(-128, 128, (m, k), dtype=torch.int8)
        h = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        assert agree(int8_linear, x_q, torch.rand(m), h, torch.rand(n), DTYPES[i % 3])


@pytest.mark.parametrize("x", [-128, 127])
def test_the_largest_sums_have_the_reference_bits(product_isa, x):
    # 2^17 products of about 2^14: codes made unsigned by adding 128 leave int32 on the way.
    for code in (-127, 127):
        x_q = torch.full((2, 131072), x, dtype=torch.int8)
        h = torch.full((5, 131072), code, dtype=torch.int8)
        assert agree(int8_linear, x_q, torch.ones(2), h, torch.rand(5), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_bounds_are_those_of_the_reference_but_for_the_order_of_sums(isa, dtype, make):
    for n, k in ((1, 1), (5, 31), (3, 32), (40, 333), (3, 0), (0, 3)):
        weight = make(n, k).to(dtype)
        h, h_scale = quantize_head(weight)
        got = head_bounds(weight, h, h_scale)
        with use_backend("reference"):
            want = head_bounds(weight, h, h_scale)
        # Sums of K squares in float64 differ by K 2^-52 of their size: far below float32's 2^-24.
        close = (got - want).abs() <= 2.0**-23 * want
        assert bool((close | (got.isnan() & want.isnan()) | (got == want)).all())


def test_bounds_have_the_same_bits_on_every_instruction_set_and_number_of_threads(built, threads):
    weight = torch.randn(300, 1003) * torch.logspace(-20, 10, 300)[:, None]
    weight[3, 5], weight[4, 6] = float("nan"), float("inf")
    h, h_scale = quantize_head(weight)
    found = []
    for name in switch.available():
        for count in (1, 2):
            threads(count)
            with switch.forced(name):
                found.append(head_bounds(weight, h, h_scale))
    assert all(same_bits(bounds, found[0]) for bounds in found)


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
