"""The fused op is its parts, a row alone is the row in a batch, and layouts lose nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError, DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import (
    bit_linear,
    bit_linear_prepacked,
    pack_codes,
    quantize_activation,
    ternary_linear,
    use_backend,
)
from bitnet_torch.ops.layouts import LAYOUTS, layout_named
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, activations, codes, seeds, sizes

BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_is_the_composition_of_its_parts(backend, dtype, m, k, n):
    x, packed = activations((m, k), dtype, "normal", 1), pack_codes(codes(n, k, 2))
    w_scale, bias = torch.tensor(0.37), torch.randn(n)
    with use_backend(backend):
        y = bit_linear(x, packed, w_scale, n, bias)
        x_q, x_scale = quantize_activation(x)
        assert same_bits(y, ternary_linear(x_q, x_scale, packed, w_scale, n, dtype, bias))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [2, 3, 7, 12, 13, 40, 129])
def test_a_row_alone_equals_the_row_in_a_batch(backend, m):
    x, packed = torch.randn(m, 200), pack_codes(codes(50, 200, 4))
    with use_backend(backend):
        batch = bit_linear(x, packed, torch.tensor(0.1), 50)
        rows = [bit_linear(row, packed, torch.tensor(0.1), 50) for row in x]
    assert same_bits(batch, torch.stack(rows))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@settings(max_examples=150, deadline=None)
@given(n=sizes, k=sizes, seed=seeds)
def test_every_layout_gives_back_every_byte_and_says_its_size(layout, n, k, seed):
    packed = pack_codes(codes(n, k, seed))
    buffer = layout_named(layout).prepack(packed, n)
    assert buffer.numel() == layout_named(layout).nbytes(n, k)
    assert same_bits(layout_named(layout).unpack(buffer, n, k), packed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@settings(max_examples=50, deadline=None)
@given(m=st.integers(0, 20), n=sizes, k=sizes, seed=seeds)
def test_every_layout_gives_the_same_result(backend, layout, m, n, k, seed):
    x, packed = activations((m, k), torch.bfloat16, "normal", seed), pack_codes(codes(n, k, seed))
    buffer = layout_named(layout).prepack(packed, n)
    with use_backend("reference"):
        want = bit_linear(x, packed, torch.tensor(0.2), n)
    with use_backend(backend):
        got = bit_linear_prepacked(x, buffer, layout, torch.tensor(0.2), n)
    assert same_bits(got, want)


def test_the_cpu_prefers_its_own_layout():
    from bitnet_torch.ops.layouts import preferred_layout

    assert preferred_layout("cpu").name == "panel8"
    with use_backend("reference"):
        assert preferred_layout("cpu").name == "exchange"


def test_a_buffer_of_the_wrong_size_is_refused_before_any_kernel_sees_it():
    x, packed = torch.randn(2, 64), pack_codes(codes(8, 64, 1))
    for layout in LAYOUTS:
        buffer = layout_named(layout).prepack(packed, 8)
        with pytest.raises(ShapeError, match=rf"prepacked must hold {buffer.numel()} bytes .* got"):
            bit_linear_prepacked(x, buffer.flatten()[:-1], layout, torch.tensor(1.0), 8)


def test_panel8_refuses_tensors_that_its_kernels_cannot_address():
    panel8, meta = layout_named("panel8"), torch.zeros(2, 64, dtype=torch.uint8, device="meta")
    with pytest.raises(DeviceError, match="on the CPU, got a tensor on meta"):
        panel8.prepack(meta, 8)
    with pytest.raises(DeviceError, match="on the CPU, got a tensor on meta"):
        panel8.unpack(meta, 8, 64)


def test_wrong_arguments_are_named():
    x, packed, one = torch.randn(2, 64), pack_codes(codes(8, 64, 1)), torch.tensor(1.0)
    with pytest.raises(ConfigurationError, match=r"layout must be one of .*, got 'tiles'"):
        bit_linear_prepacked(x, packed, "tiles", one, 8)
    with pytest.raises(ShapeError, match=r"packed must be .* \(2, 63\), got \(2, 64\)"):
        bit_linear(x[:, 1:], packed, one, 8)
    with pytest.raises(DTypeError, match="x must be float32"):
        bit_linear(x.double(), packed, one, 8)
    with pytest.raises(ShapeError, match="at least one dimension"):
        bit_linear(torch.tensor(1.0), packed, one, 8)
