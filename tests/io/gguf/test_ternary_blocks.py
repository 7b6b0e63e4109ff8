"""Ternary blocks equal bytes made by other programs, and come back as they were."""

from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bitnet_torch.errors import QuantizationError
from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.ternary_blocks import decode_ternary, encode_ternary

# One ternary matrix 8 x 512 as gguf-py 0.19 (TQ) and bitnet.cpp's converter (I2_S) write it.
VECTORS = load_file(Path(__file__).parents[2] / "data" / "gguf_vectors.safetensors")
NAMES = {"TQ1_0": "tq1_0", "TQ2_0": "tq2_0", "I2_S": "i2_s_x86"}


@pytest.mark.parametrize("kind", types.TERNARY, ids=lambda kind: kind.name)
def test_bytes_of_other_programs_are_written(kind):
    written = encode_ternary(kind, VECTORS["ternary"], VECTORS["scale"])
    assert torch.equal(written, VECTORS[NAMES[kind.name]].reshape(-1))


@pytest.mark.parametrize("kind", types.TERNARY, ids=lambda kind: kind.name)
def test_bytes_of_other_programs_are_read(kind):
    codes, scales = decode_ternary(kind, VECTORS[NAMES[kind.name]].reshape(-1))
    assert torch.equal(codes.view(8, 512), VECTORS["ternary"])
    assert torch.equal(scales, VECTORS["scale"].expand(scales.shape))


@pytest.mark.parametrize("kind", types.TERNARY, ids=lambda kind: kind.name)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.floats(2**-13, 60000, width=16))
def test_every_matrix_comes_back_as_it_was(kind, seed, blocks, scale):
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(-1, 2, (2, blocks * 256), generator=generator, dtype=torch.int8)
    t[0, :256] *= seed % 2
    data = encode_ternary(kind, t, torch.tensor(scale))
    codes, scales = decode_ternary(kind, data)
    assert data.numel() == kind.size(t.numel())
    assert torch.equal(codes.view(t.shape), t)
    assert set(scales.tolist()) <= {0.0, scale}


@pytest.mark.parametrize("kind", [types.TQ1_0, types.TQ2_0], ids=lambda kind: kind.name)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_tq_blocks_equal_those_of_the_gguf_package(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(-1, 2, (3, 512), generator=generator, dtype=torch.int8)
    t[1, 256:] = 0
    scale = torch.rand((), generator=generator) + 0.01
    theirs = gguf.quants.quantize((t * scale).numpy(), gguf.GGMLQuantizationType[kind.name])
    assert encode_ternary(kind, t, scale).tolist() == theirs.reshape(-1).tolist()


def test_a_block_of_zeros_has_size_zero():
    t = torch.zeros(1, 512, dtype=torch.int8)
    t[0, 300] = 1
    _, scales = decode_ternary(types.TQ2_0, encode_ternary(types.TQ2_0, t, torch.tensor(0.5)))
    assert scales.tolist() == [0.0, 0.5]


def test_i2_s_has_blocks_of_128_on_every_processor():
    t = torch.zeros(1, 256, dtype=torch.int8)
    t[0, 128 + 33] = 1  # block 1, l = 1, m = 1: bits 4-5 of byte 32 + 1
    data = encode_ternary(types.I2_S, t, torch.tensor(1.0))
    assert int(data[33]) == 0b01_10_01_01
    assert (data[:33] == 0b01_01_01_01).all()


@pytest.mark.parametrize("kind", [types.TQ2_0, types.I2_S], ids=lambda kind: kind.name)
def test_code_3_is_refused_with_its_index(kind):
    data = encode_ternary(kind, torch.zeros(1, 256, dtype=torch.int8), torch.tensor(1.0))
    data[40] = 0b11_01_01_01
    # TQ2_0: byte 40 is group 1, m 8, and its top bits are l 3. I2_S: block 1, m 8, l 0.
    index = {"TQ2_0": 128 + 96 + 8, "I2_S": 128 + 8}[kind.name]
    with pytest.raises(QuantizationError, match=f"weight {index} has code 3"):
        decode_ternary(kind, data)


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=54, max_size=54))
def test_any_bytes_are_some_tq1_codes(data):
    codes, _ = decode_ternary(types.TQ1_0, torch.frombuffer(bytearray(data), dtype=torch.uint8))
    assert codes.abs().max() <= 1
