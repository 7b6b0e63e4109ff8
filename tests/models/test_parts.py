"""The decoder's parts around the exact ops: the norm's gain, the rotary tables, attention."""

import math

import torch

from bitnet_torch.models.attention import StepContext
from bitnet_torch.models.rotary import RotaryTables, rotary_tables
from bitnet_torch.nn import BitLinear
from bitnet_torch.nn.norm import RMSNorm
from bitnet_torch.ops import attention, glu, rms_norm, rope
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
    block, mlp = layer.self_attn, layer.mlp
    h = rms_norm(x, layer.input_layernorm.weight, 1e-5)
    heads = [p(h).view(2, 7, -1, 16).transpose(1, 2) for p in projections(block)]
    q, k = (rope(heads[i], cos, sin) for i in (0, 1))
    start = torch.tensor(0)
    mixed = attention(q, k, heads[2], None, None, start, None).flatten(2)
    x1 = x + block.o_proj(rms_norm(mixed, block.attn_sub_norm.weight, 1e-5))
    h = rms_norm(x1, layer.post_attention_layernorm.weight, 1e-5)
    inner = glu(mlp.gate_proj(h), mlp.up_proj(h), "relu2")
    want = x1 + mlp.down_proj(rms_norm(inner, mlp.ffn_sub_norm.weight, 1e-5))
    assert same_bits(layer(x, StepContext(cos, sin, start, None, None)), want)


def projections(block):
    return block.q_proj, block.k_proj, block.v_proj
