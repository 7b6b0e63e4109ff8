"""Latent weights made from codes quantise back to the same codes and the same scale bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch import BitLinear, PackedBitLinear
from bitnet_torch.errors import QuantizationError
from bitnet_torch.nn.latent import latent_weight, near_latent_weight
from bitnet_torch.ops import pack_codes, quantize_weight
from tests.bits import same_bits
from tests.cases import codes, seeds


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 200),
    granularity=st.sampled_from(["matrix", "row"]),
    power=st.integers(-12, 30),
    seed=seeds,
)
def test_quantising_the_latent_weights_gives_back_codes_and_scale(n, k, granularity, power, seed):
    layer = BitLinear(k, n, granularity=granularity)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(n, k, generator=g) * 2.0**power)
    packed = layer.packed()
    w = packed.latent_weight()
    t, w_scale = quantize_weight(w, granularity)
    assert w.dtype == torch.float32
    assert same_bits(pack_codes(t), packed.weight)
    assert same_bits(w_scale, packed.weight_scale)


def test_multiplying_codes_by_the_scale_would_not_do():
    packed = BitLinear(128, 64).packed()
    t, w_scale = quantize_weight(packed.latent_weight())
    _, shrunk = quantize_weight(t * packed.weight_scale)
    assert same_bits(w_scale, packed.weight_scale)
    assert shrunk < 0.8 * w_scale


def test_codes_that_are_all_zero_have_no_weights_of_a_larger_scale():
    zeros = pack_codes(torch.zeros(8, 8, dtype=torch.int8))
    with pytest.raises(QuantizationError, match=r"no float32 weights of shape \(8, 8\)"):
        PackedBitLinear(zeros, torch.tensor(0.5), 8).latent_weight()
    smallest = PackedBitLinear(zeros, torch.tensor(1e-5), 8).latent_weight()
    assert smallest.count_nonzero() == 0


def test_a_layer_of_ones_is_its_scale_everywhere():
    ones = PackedBitLinear(pack_codes(torch.ones(4, 4, dtype=torch.int8)), torch.tensor(0.5), 4)
    assert ones.latent_weight().unique().tolist() == [0.5]


def test_random_codes_of_any_density_are_met():
    for seed, density in enumerate((0.02, 0.3, 0.7, 1.0)):
        keep = torch.rand(32, 64, generator=torch.Generator().manual_seed(seed)) < density
        t = codes(32, 64, seed).masked_fill(~keep, 0)
        t[0, 0] = 1
        _, w_scale = quantize_weight(t.float() * 0.03)
        layer = PackedBitLinear(pack_codes(t), w_scale, 32)
        again, scale = quantize_weight(layer.latent_weight())
        assert same_bits(again, t)
        assert same_bits(scale, w_scale)


def test_where_no_weights_have_a_scale_those_beside_it_are_found():
    t = torch.randint(
        -1, 2, (200, 12), dtype=torch.int8, generator=torch.Generator().manual_seed(0)
    )
    t[:, 0] = 1
    scale = torch.rand(200, generator=torch.Generator().manual_seed(1)) + 0.1
    missed = 0
    for row, one in zip(t, scale, strict=True):
        try:
            latent_weight(row[None], one)
        except QuantizationError:
            missed += 1
    # Sums are float32 as well; divided by 12 they leave out some of the floats between.
    assert 0 < missed < 200
    again, near = quantize_weight(near_latent_weight(t, scale), "row")
    assert torch.equal(again, t)
    apart = (near.view(torch.int32) - scale.view(torch.int32)).abs()
    assert int((apart > 0).sum()) == missed
    assert int(apart.max()) == 1
