"""Every Metal kernel against its reference, to the bit, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch import ops
from bitnet_torch.errors import DeviceError, QuantizationError
from bitnet_torch.ops.layouts import preferred_layout
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES, codes, leading, seeds, styles
from tests.metal.agreement import agrees, arguments_of, in_exchange_layout, long_contexts, results
from tests.metal.device import DEVICE, RUNS_KERNELS, on_device, outputs_on_cpu, run
from tests.metal.names import BIT_EXACT, KERNELS
from tests.ops.adversarial import CASES, EXACT_OPS, adversarial_arguments
from tests.ops.test_contracts import each_tensor, make_arguments, spread

pytestmark = RUNS_KERNELS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_has_the_references_bits_on_every_shape(name, dtype):
    agreed = []
    for i, (m, k, n) in enumerate(SHAPES):
        # Every style meets every dtype, half of the cases a scale per row, a third a bias.
        case = 3 * i + DTYPES.index(dtype)
        style = STYLES[case % len(STYLES)]
        if agrees(name, *arguments_of(name, dtype, (m,), k, n, style, case)):
            agreed.append((m, k, n))
    assert agreed == SHAPES


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_has_the_references_bits_on_every_shape_in_every_style(name, dtype, style):
    for i, (m, k, n) in enumerate(SHAPES):
        assert agrees(name, *arguments_of(name, dtype, (m,), k, n, style, i)), (m, k, n)


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=12, deadline=None)
@given(lead=leading, k=st.integers(0, 40), n=st.integers(0, 20), style=styles, seed=seeds)
def test_kernel_has_the_references_bits(name, lead, k, n, style, seed):
    dtype = DTYPES[seed % 3]
    assert agrees(name, *arguments_of(name, dtype, lead, k, n, style, seed))


@pytest.mark.parametrize("name", KERNELS)
def test_strided_inputs_are_read_right(name):
    arguments = arguments_of(name, torch.bfloat16, (2, 3), 50, 10, "normal", 3)
    assert agrees(name, *each_tensor(spread, arguments))


@pytest.mark.parametrize("m", [1, 2, 3, 8, 9, 33])
@pytest.mark.parametrize("offset", [0, 1, 16])
def test_the_product_reads_vectors_only_where_they_are_aligned(m, offset):
    k, n = 544, 37
    x_q = torch.randint(-128, 128, (m * k + offset,), dtype=torch.int8)[offset:].view(m, k)
    packed = ops.pack_codes(codes(n, k, 1))
    storage = torch.zeros(packed.numel() + offset, dtype=torch.uint8)
    storage[offset:] = packed.flatten()
    packed = storage[offset:].view(packed.shape)
    arguments = (x_q, torch.rand(m), packed, torch.rand(n), n, torch.bfloat16, torch.randn(n))
    assert agrees("ternary_linear", *arguments)


@pytest.mark.parametrize(
    "m", [1, pytest.param(5, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)]
)
def test_the_largest_sums_are_exact(m):
    # One sign throughout: acc is -2^24, the largest that float32 must hold.
    k = 131072
    x_q = torch.full((m, k), -128, dtype=torch.int8)
    t = torch.ones(5, k, dtype=torch.int8)
    t[1], t[2, ::2] = -1, -1
    t[3, k // 2 :] = 0
    x_scale, w_scale = torch.ones(m), torch.ones(())
    (y,) = run("ternary_linear", x_q, x_scale, ops.pack_codes(t), w_scale, 5, torch.float32)
    assert y.tolist() == [[-(2.0**24), 2.0**24, 0.0, -(2.0**23), -(2.0**24)]] * m


@pytest.mark.usefixtures("subnormals")
@pytest.mark.parametrize("scale", [1e15, 1e-30, 2.0**-149, 3.4e38, float("nan")])
@pytest.mark.parametrize("m", [1, 9])
def test_extreme_scales_keep_the_references_bits(m, scale):
    x_q = torch.randint(-128, 128, (m, 33), dtype=torch.int8)
    x_q[0] = 0
    packed = ops.pack_codes(codes(9, 33, 1))
    bias = torch.randn(9)
    for dtype in DTYPES:
        arguments = (x_q, torch.full((m,), scale), packed, torch.tensor(0.75), 9, dtype)
        assert agrees("ternary_linear", *arguments)
        assert agrees("ternary_linear", *arguments, bias)


def test_a_row_that_cannot_be_quantised_is_nan_and_its_neighbours_are_not():
    x = torch.randn(4, 3000)
    x[0, 2999], x[1, 5], x[2, 0] = float("nan"), -float("inf"), 2.0**126
    x_q, x_scale = run("quantize_activation", x)
    assert x_scale.isnan().tolist() == [True, True, False, False]
    assert not x_q[:2].any()
    assert agrees("quantize_activation", x)


@pytest.mark.usefixtures("subnormals")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_of_hard_rows_have_the_references_bits(dtype):
    # A row too large for its norm, one just small enough, NaN, infinite, subnormal, zeros.
    values = [2.0**63, 2.0**62, float("nan"), -float("inf"), 2.0**-140, 0.0]
    x = torch.randn(len(values), 1030)
    x[:, 1029] = torch.tensor(values)
    x[4:, :1029] = 0
    gain = torch.randn(1030)
    for eps in (1e-12, 1e-5):
        assert agrees("rms_norm", x.to(dtype), gain, eps)
        assert agrees("rms_norm_quantize", x.to(dtype), gain, eps)
    assert agrees("quantize_activation", x.to(dtype))


def test_half_precision_subnormals_are_kept_where_subnormals_are_flushed():
    x = torch.tensor([[2.0**-24, -(2.0**-15), 0.0, 2.0**-14]] * 3, dtype=torch.float16)
    one = torch.ones(4, dtype=torch.float16)
    for eps in (1e-12, 1e-5):
        assert agrees("rms_norm", x, one, eps)
    assert agrees("rope", x, torch.tensor([[0.5, 1.0]]), torch.tensor([[0.25, 0.0]]))
    assert agrees("glu", x, x.fill_(2.0**-8), "relu2")
    assert agrees("quantize_weight", x)


@pytest.mark.usefixtures("subnormals")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_gates_of_every_pair_of_hard_values_have_the_references_bits(activation, dtype):
    hard = [0.0, 1.0, 88.0, 104.5, 3e38, 2.0**-149, 1e-30, float("inf"), float("nan")]
    hard = torch.tensor([*hard, *(-v for v in hard)])
    g, u = torch.meshgrid(hard, hard, indexing="ij")
    assert agrees("glu", g.to(dtype), u.to(dtype), activation)
    assert agrees("glu_norm_quantize", g.to(dtype), u.to(dtype), None, 1e-5, activation)


@pytest.mark.parametrize(
    "table", [(), (5,), (3, 1, 5), (1, 5), (2, 3, 1, 1), (3, 1, 1), (2, 1, 1, 5), (2, 3, 4, 5)]
)
def test_rope_reads_tables_of_every_broadcast_shape(table):
    x = torch.randn(2, 3, 4, 5, 6)
    angles = torch.randn(*table, 3)
    assert agrees("rope", x, angles.cos(), angles.sin())


@pytest.mark.parametrize("start", [-2, 3, 9])
@pytest.mark.parametrize("kind", [torch.float16, torch.int8], ids=str)
def test_slots_outside_the_cache_are_not_written_and_others_are(start, kind):
    q, k, v, cos, sin, *_ = make_arguments("rope_kv_write", torch.float16, (4,), 16, 3, "normal", 1)
    shape = (*k.shape[:2], 5, 16)
    cache = [torch.full(shape, 7, dtype=kind) for _ in range(2)]
    scales = [torch.full(shape[:-1], 0.5) if kind == torch.int8 else None for _ in range(2)]
    arguments = [*map(on_device, (q, k, v, cos, sin, *cache, *scales, torch.tensor(start)))]
    _, keys, *_ = results("rope_kv_write", "metal", arguments)
    written = [slot for slot in range(5) if start <= slot < start + 4]
    touched = (keys.cpu() != 7).flatten(3).any(3).any(1).any(0).nonzero().flatten().tolist()
    assert touched == written


def test_attention_over_several_chunks_has_the_references_bits():
    for arguments in long_contexts():
        assert agrees("attention", *arguments)


def test_a_query_that_stands_outside_the_cache_is_nan_on_this_device():
    q, keys, values = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
    (out,) = run("attention", q, keys, values, None, None, torch.tensor(-2), None)
    assert out.isnan().flatten(2).all(2).tolist() == [[True, True, False]]


@pytest.mark.slow
@pytest.mark.usefixtures("subnormals")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in EXACT_OPS if n in BIT_EXACT])
@pytest.mark.timeout(600)
def test_kernels_have_the_references_bits_at_the_ends_of_what_they_accept(name, dtype, case):
    for arguments in adversarial_arguments(name, case, dtype):
        assert agrees(name, *in_exchange_layout(name, arguments))


@pytest.mark.usefixtures("subnormals")
@pytest.mark.parametrize("value", [1.0, 1e-5, 9e-6, 1e-38, 2.0**-149, 3e38, 0.3])
def test_constant_weights_have_the_references_scale(value):
    # Several groups' worth of one value: sums past 2^31, peaks at the ends of the range.
    w = torch.full((3, 4099), value)
    for granularity in ("matrix", "row"):
        assert agrees("quantize_weight", w, granularity)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", ["matrix", "row"])
def test_a_weight_that_is_not_finite_is_named(value, granularity):
    w = torch.randn(5, 9)
    w[3, 7] = value
    with pytest.raises(QuantizationError, match=r"weight \[3, 7\] is (nan|inf|-inf)"):
        run("quantize_weight", w, granularity)


def test_a_code_that_is_not_ternary_is_named():
    t = codes(9, 5, 1)
    t[8, 4] = 2
    with pytest.raises(QuantizationError, match=r"t\[8, 4\] is 2; codes must be"):
        run("pack_codes", t)


@pytest.mark.parametrize("name", ["unpack_codes", "ternary_linear", "bit_linear"])
def test_a_corrupt_byte_is_named_by_every_op_that_takes_the_exchange_layout(name):
    packed = ops.pack_codes(codes(9, 5, 1))
    packed[2, 3] |= 0b11_00_00_00
    x_q, x_scale = ops.quantize_activation(torch.randn(2, 5))
    arguments = {
        "unpack_codes": (packed, 9),
        "ternary_linear": (x_q, x_scale, packed, torch.tensor(1.0), 9, torch.float32),
        "bit_linear": (torch.randn(2, 5), packed, torch.tensor(1.0), 9),
    }[name]
    with pytest.raises(QuantizationError, match=r"packed\[2, 3\] is 0b11\d+, which holds code 3"):
        run(name, *arguments)


@pytest.mark.parametrize("name", ["bit_linear_prepacked", "multi_ternary_linear"])
def test_codes_in_another_backends_layout_are_read_too(name):
    arguments = make_arguments(name, torch.float32, (3,), 40, 9, "normal", 1)
    assert preferred_layout("cpu").name in arguments
    assert agrees(name, *arguments)


def test_a_tensor_of_a_third_device_is_refused():
    with pytest.raises(DeviceError, match=r"runs on mps.* tensors, got one on meta"):
        ops.quantize_activation.impls["metal"](torch.empty(2, 2, device="meta"))


def test_default_dispatch_on_the_cpu_stays_with_the_cpu_backend():
    assert all(op.owner["cpu"] == "cpu" for op in ops.all_ops().values())
    assert ops.serving_backend("cpu") == "cpu"


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_serve_mps_tensors(name):
    assert ops.all_ops()[name].owner["mps"] == "metal"
    if DEVICE == "mps":
        arguments = arguments_of(name, torch.float16, (3,), 40, 9, "normal", 1)
        result = outputs_on_cpu(ops.all_ops()[name](*map(on_device, arguments)))
        assert all(same_bits(a, b) for a, b in zip(result, run(name, *arguments), strict=True))
