"""Every Metal kernel against its reference, to the bit, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch import ops
from bitnet_torch.errors import DeviceError
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, STYLES, codes, leading, seeds, styles
from tests.metal.agreement import agrees, long_contexts, results
from tests.metal.device import DEVICE, RUNS_KERNELS, on_device, outputs_on_cpu, run
from tests.metal.names import BIT_EXACT, KERNELS
from tests.ops.adversarial import CASES, EXACT_OPS, adversarial_arguments
from tests.ops.kernel_contract import KernelContract, arguments_of, in_exchange_layout, largest_sums
from tests.ops.test_contracts import each_tensor, make_arguments, spread

pytestmark = RUNS_KERNELS


class TestContract(KernelContract):
    run = staticmethod(run)
    agrees = staticmethod(agrees)


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
    arguments, want = largest_sums(m)
    (y,) = run("ternary_linear", *arguments)
    assert y.tolist() == want


def test_half_precision_subnormals_are_kept_where_subnormals_are_flushed():
    x = torch.tensor([[2.0**-24, -(2.0**-15), 0.0, 2.0**-14]] * 3, dtype=torch.float16)
    one = torch.ones(4, dtype=torch.float16)
    for eps in (1e-12, 1e-5):
        assert agrees("rms_norm", x, one, eps)
    assert agrees("rope", x, torch.tensor([[0.5, 1.0]]), torch.tensor([[0.25, 0.0]]))
    assert agrees("glu", x, x.fill_(2.0**-8), "relu2")
    assert agrees("quantize_weight", x)


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


def test_a_tensor_of_a_third_device_is_refused():
    with pytest.raises(DeviceError, match=r"runs on mps.* tensors, got one on meta"):
        ops.quantize_activation.impls["metal"](torch.empty(2, 2, device="meta"))


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_serve_mps_tensors(name):
    assert ops.all_ops()[name].owner["mps"] == "metal"
    if DEVICE == "mps":
        arguments = arguments_of(name, torch.float16, (3,), 40, 9, "normal", 1)
        result = outputs_on_cpu(ops.all_ops()[name](*map(on_device, arguments)))
        assert all(same_bits(a, b) for a, b in zip(result, run(name, *arguments), strict=True))
