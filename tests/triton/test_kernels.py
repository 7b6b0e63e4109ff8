"""Every Triton kernel against its reference, to the bit, and what it refuses."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch import ops
from bitnet_torch.errors import DeviceError, QuantizationError
from bitnet_torch.ops._registry import written_arguments
from bitnet_torch.ops.layouts import EXCHANGE, preferred_layout
from tests.bits import same_bits
from tests.bounds import BOUNDS, within_bound
from tests.cases import DTYPES, SHAPES, STYLES, codes, leading, seeds, styles
from tests.ops.adversarial import CASES, EXACT_OPS, adversarial_arguments
from tests.ops.test_contracts import agree, each_tensor, make_arguments, spread
from tests.triton.device import DEVICE, RUNS_KERNELS, on_device, outputs_on_cpu

pytestmark = RUNS_KERNELS

NAMES = sorted(ops.all_ops())
# Float sums, whose order is the backend's own: bounded in tests of their own.
BOUNDED = {"float_linear", "screened_top_k"}
EXACT = [name for name in NAMES if name not in BOUNDED]


def arguments_of(name, *case):
    arguments = make_arguments(name, *case)
    if name == "bit_linear_prepacked":
        x, buffer, layout, scale, n, bias = arguments
        packed = ops.layouts.layout_named(layout).unpack(buffer, n, x.shape[-1])
        arguments = (x, packed, EXCHANGE.name, scale, n, bias)
    if name == "multi_ternary_linear":
        x_q, x_scale, buffers, layout, scales, sizes, *rest = arguments
        unpack = ops.layouts.layout_named(layout).unpack
        buffers = [unpack(b, n, x_q.shape[-1]) for b, n in zip(buffers, sizes, strict=True)]
        arguments = (x_q, x_scale, buffers, EXCHANGE.name, scales, sizes, *rest)
    return arguments


def run(name, *arguments, backend="triton"):
    """Run the kernel on its device; return the outputs, and what it has written, on the CPU.

    What it writes into are copies, which keep a view's strides only if they are dense.
    """
    op = ops.all_ops()[name]
    written = written_arguments(op)
    device = on_device if backend == "triton" else lambda value: value
    placed = [
        device(a).clone() if i in written and a is not None else device(a)
        for i, a in enumerate(arguments)
    ]
    out = outputs_on_cpu(op.impls[backend](*placed))
    return (*out, *outputs_on_cpu(tuple(placed[i] for i in written if placed[i] is not None)))


def agrees(name, *arguments):
    """Return whether the kernel has the reference's bits, or is as near as the contract says."""
    got, want = (run(name, *arguments, backend=backend) for backend in ("triton", "reference"))
    if name in BOUNDS:
        return all(within_bound(name, g, w, arguments) for g, w in zip(got, want, strict=True))
    return agree(name, arguments, got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_kernel_has_the_references_bits_on_every_shape(name, dtype):
    agreed = []
    for i, (m, k, n) in enumerate(SHAPES):
        # Every style meets every dtype, half of the cases a scale per row, a third a bias.
        case = 3 * i + DTYPES.index(dtype)
        style = STYLES[case % len(STYLES)]
        if agrees(name, *arguments_of(name, dtype, (m,), k, n, style, case)):
            agreed.append((m, k, n))
    assert agreed == SHAPES
    assert len(agreed) == 14


# One op for each kernel that adds up a row; the others take the interpreter too long.
ADD_UP = ("bit_linear", "rms_norm_quantize")


def ends():
    """Yield op, case and a dtype, which each op sees all three of."""
    for i, name in enumerate(EXACT_OPS):
        for j, case in enumerate(CASES):
            slow = case == "longest rows" and name not in ADD_UP
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(name, case, DTYPES[(i + j) % 3], marks=marks)


@pytest.mark.parametrize(("name", "case", "dtype"), [*ends()], ids=str)
def test_kernel_has_the_references_bits_at_the_ends_of_what_it_accepts(name, case, dtype):
    for arguments in islice(adversarial_arguments(name, case, dtype), 2):
        assert agrees(name, *arguments)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=15, deadline=None)
@given(lead=leading, k=st.integers(0, 40), n=st.integers(0, 20), style=styles, seed=seeds)
def test_kernel_has_the_references_bits(name, lead, k, n, style, seed):
    dtype = DTYPES[seed % 3]
    assert agrees(name, *arguments_of(name, dtype, lead, k, n, style, seed))


@pytest.mark.parametrize("name", EXACT)
def test_strided_inputs_are_read_right(name):
    arguments = arguments_of(name, torch.bfloat16, (2, 3), 50, 10, "normal", 3)
    strided = each_tensor(spread, arguments)
    assert agrees(name, *strided)


@pytest.mark.parametrize("m", [1, 2])
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


@pytest.mark.parametrize("scale", [1e15, 1e-30, 2.0**-149, 3.4e38, float("nan")])
@pytest.mark.parametrize("m", [1, 3])
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


@pytest.mark.parametrize("kind", [0, 1])
def test_slots_outside_the_cache_are_not_written(kind):
    q, k, v, cos, sin, *cache, _ = make_arguments(
        "rope_kv_write", torch.float32, (4,), 16, 5, "normal", kind
    )
    length = cache[0].shape[2]
    for start in (-2, length - 2, length, -9, 2**40):
        placed = [None if c is None else on_device(c.clone()) for c in cache]
        kernel = ops.all_ops()["rope_kv_write"].impls["triton"]
        kernel(*map(on_device, (q, k, v, cos, sin)), *placed, on_device(torch.tensor(start)))
        for before, after in zip(cache, placed, strict=True):
            if before is not None:
                hit = [at for at in range(start, start + 4) if 0 <= at < length]
                kept = [at for at in range(length) if at not in hit]
                assert same_bits(after.cpu()[:, :, kept], before[:, :, kept])
                assert not hit or not torch.equal(after.cpu()[:, :, hit], before[:, :, hit])


def test_attention_has_its_own_bits_for_any_batch_padding_and_chunks():
    d, length = 20, 40
    q, keys, values = (torch.randn(2, h, length, d) for h in (6, 2, 2))
    start, first = torch.tensor(0), torch.tensor([0, 21])
    (whole,) = run("attention", q, keys, values, None, None, start, first)
    (alone,) = run(
        "attention", *(x[1:, :, 21:] for x in (q, keys, values)), None, None, start, None
    )
    assert same_bits(alone, whole[1:, 21:])
    pieces = [
        run("attention", q[:, :, at : at + 13], keys, values, None, None, torch.tensor(at), first)
        for at in range(0, length, 13)
    ]
    assert same_bits(torch.cat([piece for (piece,) in pieces], 1), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_reaches_only_those_who_see_it(bad):
    q, keys, values = (torch.randn(1, h, 20, 16) for h in (4, 2, 2))
    rest = None, None, torch.tensor(0), torch.tensor([3])
    (clean,) = run("attention", q, keys, values, *rest)
    values[0, 1, 6, 3] = bad
    (out,) = run("attention", q, keys, values, *rest)
    hit = torch.zeros_like(out, dtype=torch.bool)
    hit[0, 6:, 2:, 3] = True
    assert same_bits(out[~hit], clean[~hit])
    assert same_bits(out[hit], torch.full_like(out[hit], bad))


@pytest.mark.parametrize("value", [1.0, 1e-5, 9e-6, 1e-38, 2.0**-149, 3e38, 0.3])
def test_constant_weights_have_the_references_scale(value):
    # 4099 programs' worth of one value: sums past 2^31, peaks at the ends of the range.
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
    with pytest.raises(DeviceError, match=r"runs on cuda.* tensors, got one on meta"):
        ops.quantize_activation.impls["triton"](torch.empty(2, 2, device="meta"))


def test_default_dispatch_on_the_cpu_stays_with_the_cpu_backend():
    assert all(op.owner["cpu"] == "cpu" for op in ops.all_ops().values())
    assert ops.serving_backend("cpu") == "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_serve_cuda_tensors(name):
    assert ops.all_ops()[name].owner["cuda"] == "triton"
    if DEVICE == "cuda":
        arguments = arguments_of(name, torch.float16, (3,), 40, 9, "normal", 1)
        result = outputs_on_cpu(ops.all_ops()[name](*map(on_device, arguments)))
        assert all(same_bits(a, b) for a, b in zip(result, run(name, *arguments), strict=True))
