"""Every Triton kernel against its reference, to the bit, and what it refuses."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch import ops
from bitnet_torch.errors import DeviceError
from bitnet_torch.ops._registry import written_arguments
from tests.bits import same_bits
from tests.bounds import BOUNDS, within_bound
from tests.cases import DTYPES, SHAPES, STYLES, leading, seeds, styles
from tests.ops.adversarial import CASES, EXACT_OPS, adversarial_arguments
from tests.ops.kernel_contract import KernelContract, arguments_of, largest_sums
from tests.ops.test_contracts import agree, each_tensor, make_arguments, spread
from tests.triton.device import DEVICE, RUNS_KERNELS, on_device, outputs_on_cpu

pytestmark = RUNS_KERNELS

NAMES = sorted(ops.all_ops())
# Float sums, whose order is the backend's own: bounded in tests of their own.
BOUNDED = {"float_linear", "screened_top_k"}
EXACT = [name for name in NAMES if name not in BOUNDED]


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


class TestContract(KernelContract):
    run = staticmethod(run)
    agrees = staticmethod(agrees)


def agree_on(name, pairs):
    """Return the shapes, of (number, dtype), on which the kernel agrees."""
    agreed = []
    for i, dtype in pairs:
        m, k, n = SHAPES[i]
        # Every style meets every dtype, half of the cases a scale per row, a third a bias.
        case = 3 * i + DTYPES.index(dtype)
        style = STYLES[case % len(STYLES)]
        if agrees(name, *arguments_of(name, dtype, (m,), k, n, style, case)):
            agreed.append((m, k, n))
    return agreed


def quick_dtype(name, i):
    """Return the dtype in which the quick test tries an op on shape ``i``, or None for none."""
    if name == "attention" and SHAPES[i] == (131, 513, 31):
        return None  # heads of 512: the interpreter takes as long as for all others
    # Each shape in one dtype, and each dtype on a third of the shapes: the op decides which.
    return DTYPES[(i + EXACT.index(name)) % 3]


@pytest.mark.parametrize("name", EXACT)
def test_kernel_has_the_references_bits_on_every_shape(name):
    pairs = [(i, d) for i in range(len(SHAPES)) if (d := quick_dtype(name, i)) is not None]
    assert agree_on(name, pairs) == [SHAPES[i] for i, _ in pairs]
    assert len(pairs) >= 13


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_kernel_has_the_references_bits_on_every_shape_in_every_dtype(name, dtype):
    # The quick test has had the others.
    numbers = [i for i in range(len(SHAPES)) if quick_dtype(name, i) is not dtype]
    assert agree_on(name, [(i, dtype) for i in numbers]) == [SHAPES[i] for i in numbers]


# Of the kernels that add up a row: the products have the largest sums below, the others take the
# interpreter too long.
ADD_UP = ("rms_norm_quantize",)


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
    arguments, want = largest_sums(m)
    (y,) = run("ternary_linear", *arguments)
    assert y.tolist() == want


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


def test_a_tensor_of_a_third_device_is_refused():
    with pytest.raises(DeviceError, match=r"runs on cuda.* tensors, got one on meta"):
        ops.quantize_activation.impls["triton"](torch.empty(2, 2, device="meta"))


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_serve_cuda_tensors(name):
    assert ops.all_ops()[name].owner["cuda"] == "triton"
    if DEVICE == "cuda":
        arguments = arguments_of(name, torch.float16, (3,), 40, 9, "normal", 1)
        result = outputs_on_cpu(ops.all_ops()[name](*map(on_device, arguments)))
        assert all(same_bits(a, b) for a, b in zip(result, run(name, *arguments), strict=True))


def test_the_largest_of_a_row_in_several_pieces_are_found_wherever_they_stand():
    # Equals in two pieces, and a last piece of fewer keys than are wanted.
    logits = torch.randn(2, 4099)
    logits[0, [7, 4096, 4098]] = 9.0
    logits[1, 4097] = float("nan")
    for k in (1, 5):
        assert agrees("top_k", logits, k)


def test_rows_longer_than_registers_hold_have_the_references_bits():
    x = torch.randn(2, 8200).to(torch.bfloat16)
    x[0, 8199] = 40.0
    gain = torch.randn(8200)
    assert agrees("rms_norm", x, gain, 1e-5)
    assert agrees("glu_norm_quantize", x, x.flip(0), gain, 1e-5, "relu2")
    assert agrees("quantize_weight", x, "row")


def test_a_matrix_of_more_than_a_step_for_each_program_has_the_references_scale():
    w = torch.randn(1025, 1040)
    w[1024, 1039] = 17.0
    assert agrees("quantize_pack_weight", w, "matrix")
