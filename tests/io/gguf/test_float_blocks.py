"""Float blocks equal the gguf package's, where it has them, to the bit."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.float_blocks import WRITABLE, decode_float, encode_float
from tests.bits import same_bits


def draw(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator) * 0.02
    weights[0, : columns // 2] = 0
    return weights


def theirs(kind):
    return gguf.GGMLQuantizationType[kind.name]


@pytest.mark.parametrize("kind", types.FLOAT, ids=lambda kind: kind.name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_bytes_mean_what_they_mean_to_the_gguf_package(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 4 * kind.nbytes)
    data = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with np.errstate(all="ignore"):
        want = torch.from_numpy(gguf.quants.dequantize(data.numpy(), theirs(kind)))
    assert same_bits(decode_float(kind, data.reshape(-1)).to(torch.float32), want.reshape(-1))


@pytest.mark.parametrize(
    "kind", [types.F32, types.F16, types.BF16, types.Q8_0], ids=lambda k: k.name
)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_written_bytes_are_those_of_the_gguf_package(kind, seed):
    weights = draw(seed, 3, 128)
    want = gguf.quants.quantize(weights.numpy(), theirs(kind)).reshape(-1).view(np.uint8)
    assert encode_float(kind, weights).tolist() == want.tolist()


EXACT = [kind for kind in WRITABLE if kind is not types.Q6_K]


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_is_written_again_after_reading_is_the_same(kind, seed):
    data = encode_float(kind, draw(seed, 3, 512))
    values = decode_float(kind, data)
    assert same_bits(decode_float(kind, encode_float(kind, values.view(3, 512))), values)


# The second time, too, where the tries for a scale need not meet the one that the values have.
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_q6_k_errs_by_at_most_a_step_of_its_group(seed):
    weights = draw(seed, 2, 512)
    for _ in range(2):
        back = decode_float(types.Q6_K, encode_float(types.Q6_K, weights)).view(-1, 16)
        groups = weights.view(-1, 16)
        # A step is max / 32, give or take the nineteen tries (9 tenths of a step in 32) and the
        # rounding of the scale to int8 (half of max_scale / 128, as much as a group has of it).
        largest = weights.view(-1, 256).abs().amax(1).repeat_interleave(16)
        step = groups.abs().amax(1) / 31 * (1 + 0.9 / 32)
        bound = step + 32 * largest / 31 / 256
        assert ((back - groups).abs().amax(1) <= bound).all()
        weights = back.view(2, 512)


def test_q6_k_is_closer_than_a_scale_without_search():
    weights = torch.randn(64, 256) * 0.02
    back = decode_float(types.Q6_K, encode_float(types.Q6_K, weights)).view(64, 16, 16)
    groups = weights.view(64, 16, 16)
    step = groups.abs().amax(-1, keepdim=True) / 31
    plain = (groups / step).round() * step
    assert (back - groups).square().mean() < (plain - groups).square().mean()


def test_q8_0_rounds_halves_away_from_zero():
    block = torch.zeros(1, 32)
    block[0, :4] = torch.tensor([127.0, 0.5, -0.5, 1.5])
    assert encode_float(types.Q8_0, block)[2:6].view(torch.int8).tolist() == [127, 1, -1, 2]
