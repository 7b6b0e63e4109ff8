"""Every kernel, on every instruction set, against the reference: the same bits or a failure."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import QuantizationError
from bitnet_torch.ops import (
    bit_linear,
    pack_codes,
    quantize_activation,
    quantize_weight,
    ternary_linear,
    unpack_codes,
)
from bitnet_torch.ops.bit_linear import bit_linear_prepacked
from bitnet_torch.ops.layouts import layout_named
from tests.bits import same_bits
from tests.cpu.shapes import DTYPES, INPUTS, TOKENS, WEIGHTS, broken, plain, ties

PARITY = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def codes(n, k):
    return torch.randint(-1, 2, (n, k), dtype=torch.int8)


def agree(op, *args):
    """Return whether the op, as dispatched, and its reference have the same bits."""
    got, want = op(*args), op.impls["reference"](*args)
    if isinstance(got, torch.Tensor):
        got, want = (got,), (want,)
    return all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("k", [0, 1, 7, 16, 31, 32, 33, 255, 2560])
def test_activations_quantise_to_the_reference_bits(isa, dtype, make, k):
    for m in (0, 1, 5):
        assert agree(quantize_activation, make(m, k).to(dtype))


@pytest.mark.parametrize("granularity", ["matrix", "row"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [*WEIGHTS, (300, 700)])
def test_weights_quantise_to_the_reference_bits(isa, granularity, dtype, n, k):
    for scale in (1.0, 3e-5):
        assert agree(quantize_weight, (torch.randn(n, k) * scale).to(dtype), granularity)


@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_weights_at_the_ends_of_float32_quantise_to_the_reference_bits(isa, granularity):
    w = torch.randn(9, 33) * torch.logspace(-38, 38, 33)
    assert agree(quantize_weight, w, granularity)
    assert agree(quantize_weight, torch.full((3, 50), torch.finfo(torch.float32).max), granularity)


@pytest.mark.parametrize("granularity", ["matrix", "row"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_weight_that_is_not_finite_is_named(isa, granularity, bad):
    w = torch.randn(40, 65)
    w[17, 64] = w[39, 0] = bad
    with pytest.raises(QuantizationError, match=r"\[17, 64\]"):
        quantize_weight(w, granularity)


@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_codes_survive_every_layout(isa, n, k):
    t = codes(n, k)
    packed = pack_codes(t)
    layout = layout_named("panel8")
    buffer = layout.prepack(packed, n)
    assert agree(pack_codes, t)
    assert agree(unpack_codes, packed, n)
    assert same_bits(unpack_codes(packed, n), t)
    assert buffer.numel() == layout.nbytes(n, k)
    assert same_bits(layout.unpack(buffer, n, k), packed)


def test_the_first_value_that_is_no_code_is_named(isa):
    t = codes(13, 70)
    t[5, 69] = t[12, 0] = 2
    with pytest.raises(QuantizationError, match=r"t\[5, 69\]"):
        pack_codes(t)


@pytest.mark.parametrize("n", [13, 16])
def test_code_3_is_refused_wherever_it_is(isa, n):
    # n = 13: the last field of the last row belongs to no weight, and is still checked.
    for field in range(4):
        packed = pack_codes(codes(n, 70))
        packed[3, 69] |= 3 << (2 * field)
        for read in (unpack_codes, layout_named("panel8").prepack):
            with pytest.raises(QuantizationError, match=r"packed\[3, 69\]"):
                read(packed, n)


@pytest.mark.parametrize("m", TOKENS)
@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_products_have_the_reference_bits(product_isa, m, n, k):
    x_q = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    x_scale, packed = torch.rand(m), pack_codes(codes(n, k))
    bias = torch.randn(n)
    for dtype, w_scale, b in (
        (torch.float32, torch.rand(n), bias),
        (torch.bfloat16, torch.rand(()), bias.bfloat16()),
        (torch.float16, torch.rand(n), None),
    ):
        assert agree(ternary_linear, x_q, x_scale, packed, w_scale, n, dtype, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_the_fused_op_has_the_reference_bits(product_isa, dtype, make):
    for m in (1, 3, 17):
        for n, k in ((9, 31), (33, 257), (64, 64)):
            x, packed = make(m, k).to(dtype), pack_codes(codes(n, k))
            for bias in (None, torch.randn(n)):
                assert agree(bit_linear, x, packed, torch.rand(n), n, bias)


@given(
    m=st.integers(0, 20),
    n=st.integers(0, 70),
    k=st.integers(0, 700),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    make=st.sampled_from(INPUTS),
    seed=st.integers(0, 2**31),
)
@PARITY
def test_a_prepacked_layer_is_the_layer(product_isa, m, n, k, dtypes, make, seed):
    torch.manual_seed(seed)
    x, packed = make(m, k).to(dtypes[0]), pack_codes(codes(n, k))
    w_scale, bias = torch.rand(1), torch.randn(n).to(dtypes[1])
    want = bit_linear.impls["reference"](x, packed, w_scale, n, bias)
    for name in ("panel8", "exchange"):
        layout = layout_named(name)
        got = bit_linear_prepacked(x, layout.prepack(packed, n), name, w_scale, n, bias)
        assert same_bits(got, want)


@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("t", [-1, 0, 1])
@pytest.mark.parametrize("k", [256, 512, 6912, 131072])
def test_saturated_rows_sum_exactly(product_isa, x, t, k):
    n = 9
    packed = pack_codes(torch.full((n, k), t, dtype=torch.int8))
    for m in (1, 2, 4, 13):
        x_q = torch.full((m, k), x, dtype=torch.int8)
        y = ternary_linear(x_q, torch.ones(m), packed, torch.ones(()), n, torch.float32)
        assert same_bits(y, torch.full((m, n), float(x * t * k) + 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_overflow_to_infinity_and_stay_nan(product_isa, dtype):
    x_q = torch.ones((3, 16), dtype=torch.int8)
    x_scale = torch.tensor([3e38, float("nan"), 4094.0])
    packed = pack_codes(torch.ones((17, 16), dtype=torch.int8))
    args = (x_q, x_scale, packed, torch.ones(()), 17, dtype)
    y = ternary_linear(*args)
    assert agree(ternary_linear, *args)
    assert y[0].isinf().all()
    assert y[1].isnan().all()


def test_many_tokens_of_a_long_row_go_through_the_scratch_in_blocks(product_isa):
    # 131072 bytes a token: the 4 MiB scratch holds 31 of these 67.
    x, packed = plain(67, 131071), pack_codes(codes(3, 131071))
    assert agree(bit_linear, x, packed, torch.ones(()), 3, None)
    x_q, x_scale = quantize_activation(x)
    assert agree(ternary_linear, x_q, x_scale, packed, torch.ones(()), 3, torch.float32, None)


def test_leading_dimensions_and_strides_do_not_matter(product_isa):
    x = ties(6, 40).reshape(2, 3, 40).transpose(0, 1)[..., ::2]
    packed, w_scale = pack_codes(codes(10, 20)), torch.rand(20)[::2]
    bias = torch.randn(20)[1::2]
    assert agree(quantize_activation, x)
    assert agree(quantize_weight, x[0].T, "row")
    assert agree(bit_linear, x, packed.T.contiguous().T, w_scale, 10, bias)
    assert agree(bit_linear, x[0, 0], packed, w_scale, 10, None)


def test_flushing_subnormals_changes_nothing(isa):
    x, packed = torch.randn(5, 40), pack_codes(codes(9, 40))
    w_scale = torch.rand(9) * 2.0**-20
    want = bit_linear(x.half(), packed, w_scale, 9)
    assert torch.any((want != 0) & (want.abs() < 2.0**-14))  # float16 subnormals are there
    torch.set_flush_denormal(True)
    try:
        got = bit_linear(x.half(), packed, w_scale, 9)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(got, want)


def test_a_row_that_cannot_be_quantised_is_nan_and_its_neighbours_are_not(isa):
    y = bit_linear(broken(6, 70), pack_codes(codes(5, 70)), torch.ones(()), 5)
    assert y.isnan().all(-1).tolist() == [True, False, False, True, False, True]
    assert not y[[1, 2, 4]].isnan().any()
