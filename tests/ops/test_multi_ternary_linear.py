"""One quantised input through several matrices is each layer by itself, to the bit."""

import pytest
import torch

from bitnet_torch.errors import ConfigurationError, DeviceError, DTypeError, ShapeError
from bitnet_torch.ops import (
    bit_linear,
    multi_ternary_linear,
    pack_codes,
    quantize_activation,
    ternary_linear,
    use_backend,
)
from bitnet_torch.ops.layouts import layout_named, preferred_layout
from tests.bits import same_bits
from tests.cases import DTYPES, SHAPES, codes

BACKENDS = ["reference", "cpu"]


def make(m, k, sizes, layout="exchange", seed=0):
    """Return x_q, x_scale, exchange codes, codes in ``layout``, scales (every second by row)."""
    g = torch.Generator().manual_seed(seed)
    x_q = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=g)
    packed = [pack_codes(codes(n, k, seed + i)) for i, n in enumerate(sizes)]
    prepack = layout_named(layout).prepack
    held = [prepack(p, n) for p, n in zip(packed, sizes, strict=True)]
    scales = [torch.rand((n,) if i % 2 else (), generator=g) for i, n in enumerate(sizes)]
    return x_q, torch.rand(m, generator=g), packed, held, scales


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["exchange", "panel8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_each_output_is_the_layer_by_itself(backend, layout, dtype, m, k, n):
    if layout == "panel8" and preferred_layout("cpu").name != layout:
        pytest.skip("the CPU kernels are not built")
    sizes = [n, 1, 2 * n + 3, 0]
    x_q, x_scale, packed, held, scales = make(m, k, sizes, layout)
    biases = [None, torch.randn(1), torch.randn(2 * n + 3).to(dtype), None]
    with use_backend(backend):
        got = multi_ternary_linear(x_q, x_scale, held, layout, scales, sizes, dtype, biases)
        want = [
            ternary_linear(x_q, x_scale, p, s, n, dtype, b)
            for p, s, n, b in zip(packed, scales, sizes, biases, strict=True)
        ]
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    assert all(y.is_contiguous() for y in got)


def test_hand_worked_example():
    # t = [[1, -1]] and [[0, 1], [1, 1]]; x = (3, 5) * 0.5; scales 2 and (1, 4).
    x_q, x_scale = torch.tensor([[3, 5]], dtype=torch.int8), torch.tensor([0.5])
    t = [torch.tensor([[1, -1]]), torch.tensor([[0, 1], [1, 1]])]
    packed = [pack_codes(c.to(torch.int8)) for c in t]
    scales = [torch.tensor(2.0), torch.tensor([1.0, 4.0])]
    y, z = multi_ternary_linear(
        x_q, x_scale, packed, "exchange", scales, [1, 2], torch.float32, [None, None]
    )
    assert y.tolist() == [[-2.0]]
    assert z.tolist() == [[2.5, 16.0]]


def test_after_quantising_it_is_bit_linear():
    x, t = torch.randn(2, 3, 40), codes(9, 40, 1)
    x_q, x_scale = quantize_activation(x)
    scale, bias = torch.tensor(0.3), torch.randn(9)
    (y,) = multi_ternary_linear(
        x_q, x_scale, [pack_codes(t)], "exchange", [scale], [9], x.dtype, [bias]
    )
    assert same_bits(y, bit_linear(x, pack_codes(t), scale, 9, bias))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 5, 40])
def test_results_depend_on_neither_the_thread_count_nor_the_other_matrices(backend, m, threads):
    # 40 and 33 panels: chunks of the threads begin and end inside each matrix.
    sizes = [320, 7, 257]
    x_q, x_scale, _, held, scales = make(m, 700, sizes)
    results = []
    for n in (1, 2, 3, 8):
        threads(n)
        with use_backend(backend):
            results.append(
                multi_ternary_linear(
                    x_q, x_scale, held, "exchange", scales, sizes, torch.bfloat16, [None] * 3
                )
            )
    for i, n in enumerate(sizes):
        alone = ternary_linear(x_q, x_scale, held[i], scales[i], n, torch.bfloat16)
        assert all(same_bits(result[i], alone) for result in results)


def test_wrong_arguments_are_named_with_their_place_and_both_values():
    x_q, x_scale, _, held, scales = make(2, 64, [8, 12])

    def call(**changes):
        arguments = {
            "x_q": x_q,
            "x_scale": x_scale,
            "prepacked": held,
            "layout": "exchange",
            "w_scale": scales,
            "N": [8, 12],
            "dtype": torch.float32,
            "bias": [None, None],
        }
        return multi_ternary_linear(**(arguments | changes))

    with pytest.raises(ShapeError, match=r"one entry for each .* got 2, 2, 2 and 1"):
        call(bias=[None])
    with pytest.raises(ShapeError, match=r"one or more matrices, got 0, 0, 0 and 0"):
        call(prepacked=[], w_scale=[], N=[], bias=[])
    with pytest.raises(ShapeError, match=r"prepacked\[1\] must hold 192 bytes for N=12, K=64"):
        call(prepacked=[held[0], held[0]])
    with pytest.raises(DTypeError, match=r"prepacked\[0\] must be uint8, got torch\.int8"):
        call(prepacked=[held[0].to(torch.int8), held[1]])
    with pytest.raises(ShapeError, match=r"w_scale\[1\] must be .* = \(12,\), got \(8,\)"):
        call(w_scale=[scales[0], torch.ones(8)])
    with pytest.raises(ShapeError, match=r"bias\[0\] must be \(N,\) = \(8,\), got \(12,\)"):
        call(bias=[torch.ones(12), None])
    with pytest.raises(ShapeError, match=r"x_scale must have .* \(2,\), got \(3,\)"):
        call(x_scale=torch.ones(3))
    with pytest.raises(DTypeError, match=r"dtype must be .*, got torch.float64"):
        call(dtype=torch.float64)
    with pytest.raises(ConfigurationError, match=r"layout must be one of .*, got 'rows'"):
        call(layout="rows")
    with pytest.raises(ConfigurationError, match="N must not be negative, got -1"):
        call(N=[8, -1])
    with pytest.raises(DeviceError, match=r"one device, got x_q on cpu, .*prepacked\[1\] on meta"):
        call(prepacked=[held[0], held[1].to("meta")])
