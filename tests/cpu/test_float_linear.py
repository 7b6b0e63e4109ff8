"""The float product on every instruction set: the reference's order, whatever the tile."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_torch.ops import float_linear
from tests.bits import same_bits
from tests.cpu.shapes import DTYPES, INPUTS

# Around tiles of 3 tokens and 4 rows, 12 | 13 tokens, blocks of 96, 32 rows, 512 columns.
TOKENS = [1, 2, 3, 4, 11, 12, 13, 14, 95, 96, 97, 99]
WEIGHTS = [(1, 1), (3, 7), (4, 8), (5, 9), (31, 40), (33, 65), (7, 511), (9, 512), (6, 1030)]


def agree(*args):
    return same_bits(float_linear(*args), float_linear.impls["reference"](*args))


@pytest.mark.parametrize("m", TOKENS)
def test_every_tile_has_the_references_bits(isa, m):
    for i, (n, k) in enumerate(WEIGHTS):
        x = torch.randn(m, k).to(DTYPES[i % 3])
        weight = torch.randn(n, k).to(DTYPES[i // 3 % 3])
        bias = None if i % 2 else torch.randn(n).to(DTYPES[(i + 1) % 3])
        assert agree(x, weight, bias, (None, torch.float32, torch.bfloat16)[i % 3])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    m=st.integers(0, 20),
    n=st.integers(0, 40),
    k=st.integers(0, 70),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    make=st.sampled_from(INPUTS),
    seed=st.integers(0, 2**31),
)
def test_hard_numbers_have_the_references_bits(isa, m, n, k, dtypes, make, seed):
    torch.manual_seed(seed)
    x, weight = make(m, k).to(dtypes[0]), make(n, k).to(dtypes[1])
    assert agree(x, weight, torch.randn(n), dtypes[2])


@pytest.mark.parametrize("m", [1, 5, 60])
def test_the_number_of_threads_changes_no_bit(isa, threads, m):
    x, weight = torch.randn(m, 700), torch.randn(1501, 700).bfloat16()
    threads(1)
    want = float_linear(x, weight)
    for count in (2, 3, 7):
        threads(count)
        assert same_bits(float_linear(x, weight), want)


def test_a_long_row_goes_through_the_scratch_in_blocks(isa):
    # 524 KiB a token: the 4 MiB scratch holds 7 of these 17.
    x, weight = torch.randn(17, 131077), torch.randn(2, 131077)
    y = float_linear(x, weight)
    for m in (0, 6, 7, 16):
        assert same_bits(float_linear(x[m : m + 1], weight), y[m : m + 1])


def test_flushing_subnormals_changes_nothing(isa):
    x, weight = torch.randn(14, 33) * 2.0**-70, torch.randn(9, 33) * 2.0**-68
    want = float_linear(x, weight)
    assert bool(((want != 0) & (want.abs() < 2.0**-126)).any())
    torch.set_flush_denormal(True)
    try:
        got = float_linear(x, weight)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got, want)
