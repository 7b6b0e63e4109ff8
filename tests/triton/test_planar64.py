"""The layout of codes that the kernels read: the bytes as drawn, and back without a loss."""

import io

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.errors import QuantizationError
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.ops import layouts
from bitnet_torch_triton import planar64
from tests.bits import same_bits
from tests.cases import codes

SHAPES = [(1, 1), (3, 64), (4, 255), (5, 256), (9, 257), (33, 700), (2, 0), (0, 300)]


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_exchange_layout_comes_back_with_code_1_past_the_rows(n, k):
    packed = ops.pack_codes(codes(n, k, 1))
    buffer = planar64.prepack(packed, n)
    assert buffer.numel() == planar64.nbytes(n, k)
    assert same_bits(planar64.unpack(buffer, n, k), packed)
    assert same_bits(planar64.unpack(buffer.flatten(), n, k), packed)


def test_bytes_hold_the_codes_that_the_drawing_shows():
    t = codes(2, 300, 2)
    buffer = planar64.prepack(ops.pack_codes(t), 2)
    for row in range(2):
        for column in range(300):
            group, j, i = column // 256, column % 256 // 64, column % 64
            byte = int(buffer[row, 64 * group + i])
            assert (byte >> (2 * j)) & 3 == int(t[row, column]) + 1


def test_code_3_is_refused():
    with pytest.raises(QuantizationError, match="code 3"):
        planar64.prepack(torch.tensor([[0b01_01_01_11]], dtype=torch.uint8), 1)


def test_a_module_holds_one_copy_and_shows_the_exchange_layout(monkeypatch):
    monkeypatch.setitem(layouts._PREFERRED, "cpu", layouts.LAYOUTS[planar64.NAME])
    t, x = codes(9, 300, 3), torch.randn(2, 300)
    packed, w_scale = ops.pack_codes(t), torch.tensor(0.5)
    layer = PackedBitLinear(packed, w_scale, 9)
    assert layer.layout == planar64.NAME
    held = [b for b in layer.buffers() if b.dtype == torch.uint8]
    assert [b.numel() for b in held] == [planar64.nbytes(9, 300)]
    assert same_bits(layer.weight, packed)
    assert same_bits(layer.state_dict()["weight"], packed)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    again = PackedBitLinear(torch.full_like(packed, 0b01_01_01_01), w_scale, 9)
    again.load_state_dict(torch.load(file))
    assert same_bits(again.prepacked, layer.prepacked)
    want = ops.bit_linear.impls["reference"](x, packed, w_scale, 9, None)
    assert same_bits(layer(x), want)
