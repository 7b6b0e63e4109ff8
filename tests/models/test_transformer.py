import copy
import pickle

import pytest
import torch
from torch import nn

from bitnet_torch.errors import DTypeError, GenerationError, ShapeError
from bitnet_torch.models import CausalLM
from bitnet_torch.models.head import logits_of
from bitnet_torch.nn import BitLinear, FloatLinear, PackedBitLinear, convert, pack
from bitnet_torch.ops import float_linear, use_backend
from tests.bits import same_bits
from tests.models.tiny import rounding_bound, tiny_config, tiny_model

ONE_LAYER = [
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.ffn_sub_norm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.attn_sub_norm.weight",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
]


def test_parameters_have_the_names_and_shapes_of_hugging_face():
    model = tiny_model(BitLinear, num_hidden_layers=1)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert sorted(shapes) == [
        "lm_head.weight",
        "model.embed_tokens.weight",
        *[f"model.layers.0.{name}" for name in ONE_LAYER],
        "model.norm.weight",
    ]
    assert shapes["model.layers.0.self_attn.attn_sub_norm.weight"] == (4 * 16,)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (2 * 16, 48)
    assert shapes["model.layers.0.mlp.ffn_sub_norm.weight"] == (80,)


def test_a_tied_model_has_no_head_and_a_llama_no_sub_norms():
    names = tiny_model(
        tie_word_embeddings=True, attn_sub_norm=False, ffn_sub_norm=False
    ).state_dict()
    assert not [name for name in names if "lm_head" in name or "sub_norm" in name]


def test_a_tied_head_is_the_embedding():
    untied, tied = tiny_model(), tiny_model(tie_word_embeddings=True)
    tied.load_state_dict(untied.state_dict(), strict=False)
    untied.lm_head.weight.data.copy_(untied.model.embed_tokens.weight)
    ids = torch.randint(96, (1, 5))
    assert same_bits(tied(ids), untied(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_float32(dtype):
    logits = tiny_model(BitLinear, dtype=dtype)(torch.zeros(2, 3, dtype=torch.int32))
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 3, 96)


def test_no_token_sees_a_later_one():
    model = tiny_model(BitLinear)
    ids = torch.randint(96, (1, 12))
    changed = ids.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 96
    assert same_bits(model(ids)[:, :8], model(changed)[:, :8])
    assert not torch.equal(model(ids)[:, 8:], model(changed)[:, 8:])


def test_training_and_packed_logits_have_the_same_bits():
    model = tiny_model(BitLinear)
    ids = torch.randint(96, (2, 17))
    before = model(ids)
    report = pack(model)
    assert len(report.packed) == 2 * 7
    assert same_bits(model(ids), before)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_bits(twin(ids), before)


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_a_training_step_has_the_logits_of_the_reference_and_its_gradients_but_for_rounding(
    activation,
):
    ids = torch.randint(96, (2, 17))

    def step(backend):
        model = tiny_model(BitLinear, hidden_act=activation)
        with use_backend(backend):
            logits = model(ids)
            logits.logsumexp(-1).sum().backward()
        return [logits, *(parameter.grad for parameter in model.parameters())]

    (logits, *gradients), (wanted, *exact) = step("cpu"), step("reference")
    assert same_bits(logits, wanted)
    for got, want in zip(gradients, exact, strict=True):
        assert (got - want).norm() <= rounding_bound(tiny_model(BitLinear), want.norm())


def test_a_decoder_compiles_in_one_graph_with_the_same_bits_and_trains():
    model, ids = tiny_model(BitLinear), torch.randint(96, (2, 9))
    want = model(ids)
    logits = torch.compile(model, fullgraph=True, backend="aot_eager")(ids)
    assert same_bits(logits, want)
    logits.logsumexp(-1).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_converting_a_float_model_ternarises_all_but_the_head():
    model = tiny_model(nn.Linear)
    convert(model)
    reference = tiny_model(BitLinear)
    reference.load_state_dict(model.state_dict())
    ids = torch.randint(96, (1, 9))
    assert same_bits(model(ids), reference(ids))
    assert type(model.lm_head) is FloatLinear


def test_a_head_that_was_made_ternary_computes_as_one_in_both_forms():
    model = tiny_model(nn.Linear)
    ids, seen = torch.randint(96, (2, 9)), []
    model.model.norm.register_forward_hook(lambda module, inputs, out: seen.append(out))
    assert "lm_head" in convert(model, exclude=()).converted
    logits = model(ids)
    assert same_bits(logits, model.lm_head(seen[0]))
    assert type(model.lm_head) is BitLinear
    pack(model)
    assert type(model.lm_head) is PackedBitLinear
    assert same_bits(model(ids), logits)
    with torch.no_grad():
        assert model.next_logits(ids, None, model.new_cache(2, 9)).shape == (2, 96)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_float_head_is_one_product_that_is_never_rounded_to_its_dtype(dtype, tied):
    model = tiny_model(nn.Linear, dtype=dtype, tie_word_embeddings=tied)
    ids, seen = torch.randint(96, (2, 9)), []
    model.model.norm.register_forward_hook(lambda module, inputs, out: seen.append(out))
    logits = model(ids)
    weight = (model.model.embed_tokens if tied else model.lm_head).weight
    assert same_bits(logits, float_linear(seen[0], weight, None, torch.float32))
    if dtype != torch.float32:
        assert not torch.equal(logits, logits.to(dtype).float())


def test_a_model_on_the_meta_device_is_its_shape_only():
    model = CausalLM(tiny_config(), nn.Linear, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    logits = model(torch.zeros(2, 5, dtype=torch.int64, device="meta"))
    assert logits.is_meta
    assert logits.shape == (2, 5, 96)


def test_initial_weights_depend_on_the_seed_and_not_on_the_dtype():
    a, b, other = tiny_model(seed=3), tiny_model(seed=3, dtype=torch.bfloat16), tiny_model(seed=4)
    before = torch.get_rng_state()
    for name, weight in a.state_dict().items():
        assert same_bits(weight.bfloat16(), b.state_dict()[name])
        assert "norm" in name or not torch.equal(weight, other.state_dict()[name])
    a.init_weights(0)
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_reach_every_parameter():
    model = tiny_model(BitLinear)
    model(torch.randint(96, (2, 9))).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


def test_bad_inputs_are_named():
    model, ids = tiny_model(), torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(DTypeError, match=r"input_ids must be int64 or int32, got torch.float32"):
        model(ids.float())
    with pytest.raises(ShapeError, match=r"input_ids must be \(B, T\), got \(4,\)"):
        model(ids[0])
    with pytest.raises(ShapeError, match=r"65 tokens; the context is 64"):
        model(torch.zeros(1, 65, dtype=torch.int64))
    with pytest.raises(DTypeError, match=r"attention_mask .* got torch.float32"):
        model(ids, torch.ones(1, 4))
    with pytest.raises(ShapeError, match=r"\(1, 4\), got \(1, 3\)"):
        model(ids, torch.ones(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("wrong", [-1, 96, 300, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_an_id_that_is_not_in_the_vocabulary_is_named_with_its_place_and_the_bound(wrong, dtype):
    ids = torch.zeros(2, 4, dtype=dtype)
    ids[1, 2] = wrong
    with pytest.raises(GenerationError, match=rf"input_ids\[1, 2\] is {wrong}; .* \[0, 96\)"):
        tiny_model()(ids)
    ids[1, 2] = 95
    assert tiny_model()(ids).shape == (2, 4, 96)


def test_layers_are_of_the_class_given_and_the_head_is_float():
    for linear, made in ((nn.Linear, FloatLinear), (BitLinear, BitLinear)):
        model = tiny_model(linear)
        assert type(model.model.layers[0].mlp.up_proj) is made
        assert type(model.lm_head) is FloatLinear
    pack(model)
    assert type(model.model.layers[0].mlp.up_proj) is PackedBitLinear


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_the_head_gives_a_token_the_same_bits_in_any_batch(dtype, tied):
    model = tiny_model(BitLinear, dtype=dtype, tie_word_embeddings=tied)
    hidden = torch.randn(40, 48).to(dtype)
    weight = model.model.embed_tokens.weight
    together = logits_of(hidden, model.lm_head, weight)
    for m in (1, 2, 3, 13):
        assert same_bits(logits_of(hidden[:m], model.lm_head, weight), together[:m])
