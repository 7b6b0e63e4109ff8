"""The decoder's parts around the exact ops: the norm's gain, the rotary tables, attention."""

import math

import torch

from bitnet_torch.models.attention import attend, visible_keys
from bitnet_torch.models.decoder_layer import StepContext
from bitnet_torch.models.norm import RMSNorm
from bitnet_torch.models.rotary import RotaryTables, rotary_tables
from bitnet_torch.nn import BitLinear
from bitnet_torch.ops import glu, rms_norm, rope
from tests.bits import same_bits
from tests.models.tiny import tiny_model


def test_the_norm_of_a_model_is_the_op_with_its_gain_and_eps():
    norm = RMSNorm(32, eps=1e-3, dtype=torch.bfloat16)
    norm.weight.data.normal_()
    x = torch.randn(2, 3, 32)
    assert same_bits(norm(x), rms_norm(x, norm.weight, 1e-3))
    assert not same_bits(norm(x), rms_norm(x, norm.weight, 1e-5))


def test_the_tables_are_the_float64_angles_rounded_once():
    cos, sin = rotary_tables(8, 500000.0, 100)
    for p in (0, 1, 57, 99):
        for j in range(4):
            angle = p * 500000.0 ** (-2 * j / 8)
            # libm and torch may differ in the last bit of float64, far below float32's.
            assert abs(cos[p, j].item() - math.cos(angle)) <= 2.0**-24
            assert abs(sin[p, j].item() - math.sin(angle)) <= 2.0**-24
    assert cos.dtype == sin.dtype == torch.float32


def test_tables_stay_float32_whatever_happens_to_the_module():
    tables = RotaryTables(8, 100.0, 16)
    cos, sin = tables.cos.clone(), tables.sin.clone()
    for moved in (tables.half(), tables.to(torch.bfloat16).float(), tables.double()):
        assert same_bits(moved.cos, cos)
        assert same_bits(moved.sin, sin)
    meta = RotaryTables(8, 100.0, 16, device="meta")
    assert meta.cos.is_meta
    assert same_bits(meta.to_empty(device="cpu").cos, cos)
    assert tables.state_dict() == {}


def test_a_layer_is_its_parts_in_the_order_of_its_docstring():
    model = tiny_model(BitLinear)
    layer, x = model.model.layers[0], torch.randn(2, 7, 48)
    cos, sin = model.model.rotary(torch.arange(7)[None])
    attention, mlp = layer.self_attn, layer.mlp
    h = rms_norm(x, layer.input_layernorm.weight, 1e-5)
    heads = [p(h).view(2, 7, -1, 16).transpose(1, 2) for p in projections(attention)]
    q, k = (rope(heads[i], cos, sin) for i in (0, 1))
    mixed = attend(q, k, heads[2], None).transpose(1, 2).flatten(2)
    x1 = x + attention.o_proj(rms_norm(mixed, attention.attn_sub_norm.weight, 1e-5))
    h = rms_norm(x1, layer.post_attention_layernorm.weight, 1e-5)
    inner = glu(mlp.gate_proj(h), mlp.up_proj(h), "relu2")
    want = x1 + mlp.down_proj(rms_norm(inner, mlp.ffn_sub_norm.weight, 1e-5))
    assert same_bits(layer(x, StepContext(cos, sin, None, None)), want)


def projections(attention):
    return attention.q_proj, attention.k_proj, attention.v_proj


def test_visible_keys_are_real_and_not_later_and_always_include_oneself():
    real = torch.tensor([[False, True, True, True], [True, True, True, True]])
    assert visible_keys(real, 2)[:, 0].tolist() == [
        [[False, True, True, False], [False, True, True, True]],
        [[True, True, True, False], [True, True, True, True]],
    ]
    assert visible_keys(real[:1], 4)[0, 0, 0].tolist() == [True, False, False, False]


def test_grouped_attention_equals_attention_on_repeated_keys():
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    scores = q @ k.repeat_interleave(3, 1).mT / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    expected = scores.softmax(-1) @ v.repeat_interleave(3, 1)
    # Two sums of at most 8 products and one softmax of at most 5 terms, in either order.
    bound = 2 * (8 + 5 + 5) * 2.0**-24 * v.abs().max()
    visible = visible_keys(torch.ones(2, 5, dtype=torch.bool), 5)
    for mask in (None, visible):
        assert (attend(q, k, v, mask) - expected).abs().max() <= bound


def test_heads_are_normalised_before_they_are_rotated():
    model = tiny_model(BitLinear, qk_norm=True)
    attention, x = model.model.layers[0].self_attn, torch.randn(1, 5, 48)
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.data.normal_()
    cos, sin = model.model.rotary(torch.arange(5)[None])
    q, k, v = (p(x).view(1, 5, -1, 16).transpose(1, 2) for p in projections(attention))
    q = rope(rms_norm(q, attention.q_norm.weight, 1e-5), cos, sin)
    k = rope(rms_norm(k, attention.k_norm.weight, 1e-5), cos, sin)
    mixed = attend(q, k, v, None).transpose(1, 2).flatten(2)
    want = attention.o_proj(rms_norm(mixed, attention.attn_sub_norm.weight, 1e-5))
    assert same_bits(attention(x, StepContext(cos, sin, None, None)), want)


def test_biases_stand_where_the_configuration_puts_them_and_start_at_zero():
    def biases(**changes):
        names = dict(tiny_model(BitLinear, **changes).model.layers[1].named_parameters())
        return sorted(name.split(".")[1] for name in names if name.endswith("bias"))

    assert biases() == []
    assert biases(qkv_bias=True) == ["k_proj", "q_proj", "v_proj"]
    assert biases(o_bias=True) == ["o_proj"]
    assert biases(mlp_bias=True) == ["down_proj", "gate_proj", "up_proj"]
    model = tiny_model(BitLinear, qkv_bias=True)
    assert same_bits(model.model.layers[0].self_attn.q_proj.bias, torch.zeros(64))
