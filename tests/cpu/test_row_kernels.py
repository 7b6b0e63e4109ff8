"""The kernels that work on rows (norm, gate, rotation), on every instruction set."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_torch.ops import (
    attention,
    glu,
    glu_norm_quantize,
    quantize_activation,
    rms_norm,
    rms_norm_quantize,
    rope,
    rope_kv_write,
)
from tests.bits import same_bits
from tests.cpu.shapes import DTYPES, INPUTS, plain

PARITY = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Around vectors of 8, steps of 16 and 32, blocks of 2048.
WIDTHS = [0, 1, 7, 8, 9, 16, 31, 33, 255, 2047, 2049]


def agree(op, *args):
    """Return whether the op, as dispatched, and its reference have the same bits."""
    got, want = op(*args), op.impls["reference"](*args)
    if isinstance(got, torch.Tensor):
        got, want = (got,), (want,)
    return all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_norms_have_the_reference_bits(isa, dtype, make):
    for k in WIDTHS:
        x = make(5, k).to(dtype)
        for weight in (torch.randn(k), torch.randn(k).bfloat16(), torch.randn(k).half()):
            assert agree(rms_norm, x, weight, 1e-5)
            assert agree(rms_norm_quantize, x, weight, 1e-12)


@pytest.mark.parametrize("activation", ["relu2", "silu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_gates_have_the_reference_bits(isa, activation, dtype, make):
    for k in WIDTHS:
        g, u = make(5, k).to(dtype), make(5, k).to(dtype)
        assert agree(glu, g, u, activation)
        for weight in (None, torch.randn(k)):
            assert agree(glu_norm_quantize, g, u, weight, 1e-5, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_rotations_have_the_reference_bits(isa, dtype, make):
    for d in (0, 2, 14, 16, 18, 30, 64, 128, 130):
        angle = torch.rand(3, d // 2) * 100
        x = make(6, d).to(dtype).reshape(2, 3, d)
        assert agree(rope, x, angle.cos(), angle.sin())
        assert agree(rope, x.transpose(0, 1), angle[:, None].cos(), angle[:, None].sin())


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_caches_are_written_with_the_reference_bits(isa, dtype, make, int8):
    for d in (0, 2, 14, 16, 18, 30, 64, 128, 130):
        angle = torch.rand(1, 1, 3, d // 2) * 100
        q, k, v = (make(6, d).to(dtype).reshape(1, 2, 3, d) for _ in range(3))
        caches = []
        for backend in ("cpu", "reference"):
            cache = [torch.zeros(1, 2, 5, d, dtype=torch.int8 if int8 else dtype) for _ in range(2)]
            cache += [torch.zeros(1, 2, 5) if int8 else None for _ in range(2)]
            arguments = (q, k, v, angle.cos(), angle.sin(), *cache, torch.tensor(1))
            caches.append((rope_kv_write.impls[backend](*arguments), *cache))
        assert all(a is None or same_bits(a, b) for a, b in zip(*caches, strict=True))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_attention_has_the_reference_bits(isa, dtype, make, int8):
    # Around vectors of 8 and stripes of 16 and 64; rows that fill a tile of four, and do not.
    for d, group in ((2, 1), (8, 3), (15, 4), (16, 5), (64, 1), (72, 8), (130, 2)):
        q, keys = make(3 * group, d).to(dtype), make(70, d).to(dtype)
        q, keys = q.reshape(1, group, 3, d), keys.reshape(1, 1, 70, d)
        cache, scales = [keys, keys.flip(2)], [None, None]
        if int8:
            cache, scales = zip(*map(quantize_activation, cache), strict=True)
        for start, first in ((67, None), (0, torch.tensor([1])), (40, torch.tensor([3]))):
            assert agree(attention, q, *cache, *scales, torch.tensor(start), first)


@pytest.mark.parametrize("dtype", DTYPES)
@PARITY
@given(pattern=st.integers(0, 2**31 - 1), d=st.integers(1, 40), tokens=st.integers(1, 9))
def test_attention_of_random_bit_patterns_has_the_reference_bits(isa, dtype, pattern, d, tokens):
    g = torch.Generator().manual_seed(pattern)
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    top = torch.iinfo(kind).max
    q, keys, values = (
        torch.randint(-top, top, (3, 1, 2, tokens, d), generator=g).to(kind).view(dtype)
    )
    assert agree(attention, q, keys, values, None, None, torch.tensor(0), None)


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_every_bfloat16_gate_has_the_reference_bits(isa, activation):
    g = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    assert agree(glu, g, torch.full_like(g, 1.5), activation)


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_every_float16_gate_has_the_reference_bits(isa, activation):
    g = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    assert agree(glu, g, torch.full_like(g, 1.5), activation)


@pytest.mark.parametrize("dtype", DTYPES)
@PARITY
@given(pattern=st.integers(0, 2**31 - 1), k=st.integers(1, 60), eps=st.floats(1e-12, 1e3))
def test_rows_of_random_bit_patterns_have_the_reference_bits(isa, dtype, pattern, k, eps):
    """Any float at all: NaN payloads, subnormals, infinities, whatever the bits say."""
    g = torch.Generator().manual_seed(pattern)
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    top = torch.iinfo(kind).max
    x, u = torch.randint(-top, top, (2, 3, k), generator=g).to(kind).view(dtype)
    weight = torch.randn(k, generator=g)
    assert agree(rms_norm, x, weight, eps)
    assert agree(rms_norm_quantize, x, weight, eps)
    for activation in ("relu2", "silu"):
        assert agree(glu, x, u, activation)
        assert agree(glu_norm_quantize, x, u, weight, eps, activation)
    half = k // 2
    cos, sin = weight[:half], weight[half : 2 * half]
    assert agree(rope, x[..., : 2 * half], cos, sin)


def test_flushing_subnormals_changes_nothing(isa):
    x = torch.randn(5, 40)
    tiny = x * 2.0**-16  # float16 subnormals
    g, u, weight = tiny.half(), x.half(), torch.full((40,), 2.0**-18)
    angle = torch.rand(20)
    calls = [
        lambda: rms_norm(g, weight, 1e-5),
        lambda: rms_norm_quantize(g, weight, 1e-5)[1],
        lambda: glu(g, u, "silu"),
        lambda: rope(g, angle.cos(), angle.sin()),
    ]
    want = [call() for call in calls]
    torch.set_flush_denormal(True)
    try:
        got = [call() for call in calls]
    finally:
        torch.set_flush_denormal(False)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


def test_strides_and_leading_dimensions_do_not_matter(isa):
    x = plain(6, 80).reshape(2, 3, 80).transpose(0, 1)[..., ::2]
    weight = torch.randn(80)[1::2]
    assert agree(rms_norm, x, weight, 1e-5)
    assert agree(rms_norm_quantize, x, weight, 1e-5)
    assert agree(glu, x, x.flip(0), "relu2")
    assert agree(glu_norm_quantize, x, x.flip(1), weight, 1e-5, "silu")
    assert agree(rope, x, weight[:20], weight[20:])
