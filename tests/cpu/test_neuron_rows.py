"""Products that pass over neurons: layouts, and each instruction set against plain integers."""

import ctypes
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_torch.ops import pack_codes, ternary_linear
from bitnet_torch.ops.layouts import LAYOUTS, convert, layout_named
from tests.bits import same_bits

pytestmark = pytest.mark.usefixtures("built")
# Around panels of 8 rows, steps of 16, groups of 4 and 16, chunks of 256, and pieces of 1024 rows.
SHAPES = [(1, 1), (8, 16), (7, 15), (33, 255), (260, 257), (512, 70), (71, 512), (1100, 513)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_codes(n, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (n, k), generator=g, dtype=torch.int8)


def multiply(t, x_q, alive, by_column, dtype=torch.float32, bias=None, w_scale=None, threads=1):
    """Return what the kernel makes of the neurons ``alive`` of codes ``t``."""
    from bitnet_torch.cpu import neuron_rows
    from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, function
    from bitnet_torch.cpu.multi_ternary_linear import MatrixArguments

    pointers = (ctypes.POINTER(MatrixArguments), POINTER, POINTER, POINTER, SIZE, INT, INT)
    kernel = function("neuron_rows_multiply", *pointers)
    n, k = t.shape
    name = neuron_rows.COLUMNS if by_column else neuron_rows.ROWS
    held = layout_named(name).prepack(pack_codes(t), n)
    w_scale = torch.tensor([0.37]) if w_scale is None else w_scale
    x_scale, y = torch.tensor([0.011]), torch.empty(n, dtype=dtype)
    chosen = alive.nonzero().flatten().to(torch.int32)
    matrix = MatrixArguments(
        *(held.data_ptr(), held.numel(), w_scale.data_ptr(), w_scale.numel()),
        *(None if bias is None else bias.data_ptr(), 0 if bias is None else DTYPE_CODE[bias.dtype]),
        *(y.data_ptr(), DTYPE_CODE[dtype], 1, n, k),
    )
    x = (x_q.data_ptr(), x_scale.data_ptr())
    assert kernel(matrix, *x, chosen.data_ptr(), len(chosen), by_column, threads) == 0
    scales = (w_scale if w_scale.numel() > 1 else w_scale[0], n, dtype, bias)
    return y, ternary_linear.impls["reference"](x_q[None], x_scale, pack_codes(t), *scales)[0]


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_code_survives_the_way_through_a_layout(n, k, by_column):
    from bitnet_torch.cpu import neuron_rows

    name = neuron_rows.COLUMNS if by_column else neuron_rows.ROWS
    packed = pack_codes(make_codes(n, k))
    held = layout_named(name).prepack(packed, n)
    assert held.numel() == LAYOUTS[name].nbytes(n, k)
    assert torch.equal(layout_named(name).unpack(held, n, k), packed)
    panels = convert(held, n, k, name, "panel8")
    assert torch.equal(panels, layout_named("panel8").prepack(packed, n))
    assert torch.equal(convert(panels, n, k, "panel8", name), held)


@pytest.mark.parametrize("by_column", [False, True])
def test_a_layout_has_the_bytes_that_are_drawn(by_column):
    from bitnet_torch.cpu import neuron_rows

    t = make_codes(300, 290)
    name = neuron_rows.COLUMNS if by_column else neuron_rows.ROWS
    held = layout_named(name).prepack(pack_codes(t), 300)
    neurons = t.T if by_column else t
    width = neurons.shape[1]
    codes = torch.ones(len(neurons), 512, dtype=torch.uint8)
    codes[:, :width] = (neurons + 1).to(torch.uint8)
    fields = codes.view(-1, 2, 4, 64)
    want = sum(fields[:, :, p] << 2 * p for p in range(4))
    assert torch.equal(held.view(-1, 2, 64), want)


def test_each_conversion_is_refused_for_a_buffer_of_another_size():
    from bitnet_torch.cpu import neuron_rows
    from bitnet_torch.errors import BitNetError

    with pytest.raises(BitNetError):
        neuron_rows.to_panels(torch.zeros(63, dtype=torch.uint8), 1, 256, by_column=False)


def inputs(k, kind, share):
    g = torch.Generator().manual_seed(7)
    x = torch.randint(-128, 128, (k,), generator=g, dtype=torch.int8)
    if kind == "extreme":
        x = torch.where(x < 0, -128, 127).to(torch.int8)
    elif kind == "least":
        x = torch.full((k,), -128, dtype=torch.int8)
    return x, torch.rand(k, generator=g) < share


@pytest.mark.parametrize("kind", ["random", "extreme", "least"])
def test_columns_of_codes_that_are_0_may_be_left_out(product_isa, kind):
    for (n, k), share in itertools.product(SHAPES, (0.0, 0.01, 0.3, 1.0)):
        x, alive = inputs(k, kind, share)
        x = torch.where(alive, x, 0).to(torch.int8)
        t = torch.ones(n, k, dtype=torch.int8) if kind == "least" else make_codes(n, k)
        got, want = multiply(t, x, x != 0, True)
        assert same_bits(got, want), (n, k, share)


@pytest.mark.parametrize("kind", ["random", "extreme", "least"])
def test_listed_rows_have_the_outputs_of_all_rows(product_isa, kind):
    for (n, k), share in itertools.product(SHAPES, (0.0, 0.01, 0.3, 1.0)):
        x, _ = inputs(k, kind, 1)
        _, alive = inputs(n, kind, share)
        t = torch.ones(n, k, dtype=torch.int8) if kind == "least" else make_codes(n, k)
        got, want = multiply(t, x, alive, False)
        assert same_bits(got[alive], want[alive]), (n, k, share)
        assert bool(got.isfinite().all())


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_block_of_neurons_bias_scale_and_dtype(product_isa, data):
    n, k = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))
    by_column, dtype = data.draw(st.booleans()), data.draw(st.sampled_from(DTYPES))
    first = data.draw(st.integers(0, k if by_column else n))
    alive = torch.zeros(k if by_column else n, dtype=torch.bool)
    alive[first : first + data.draw(st.integers(0, 600))] = True
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randint(-128, 128, (k,), generator=g, dtype=torch.int8)
    x = torch.where(alive, x, 0).to(torch.int8) if by_column else x
    bias = torch.randn(n, generator=g).to(dtype) if data.draw(st.booleans()) else None
    scale = torch.rand(n, generator=g) if data.draw(st.booleans()) else None
    threads = data.draw(st.sampled_from([1, 2]))
    got, want = multiply(make_codes(n, k), x, alive, by_column, dtype, bias, scale, threads)
    assert same_bits(got, want) if by_column else same_bits(got[alive], want[alive])


def test_two_threads_share_a_large_matrix(product_isa):
    """Large enough that the pool is asked."""
    for n, k, by_column in ((2304, 1024, False), (1024, 2304, True)):
        x, alive = inputs(2304, "random", 0.4)
        x = torch.where(alive, x, 0).to(torch.int8) if by_column else x[:1024].contiguous()
        got, want = multiply(make_codes(n, k), x, alive, by_column, threads=2)
        assert same_bits(got, want) if by_column else same_bits(got[alive], want[alive])
