"""Fusing the stages of a layer shows in no bit, and gives way to whoever watches them."""

import pytest
import torch
from torch import nn

from bitnet_torch.models import fused, transformer
from bitnet_torch.models.decoder_layer import Attention
from bitnet_torch.models.fused import QuantizedRows, gate, normalise, project, readers
from bitnet_torch.nn import BitLinear, PackedBitLinear, pack
from bitnet_torch.nn.norm import RMSNorm
from bitnet_torch.ops import use_backend
from tests.bits import same_bits
from tests.models.tiny import tiny_model

DTYPES = [torch.float32, torch.bfloat16]
STAGES = 4  # of a layer: before q, k, v; before o; before gate, up; before down


@pytest.fixture
def calls(monkeypatch):
    """Collect how many matrices each fused product multiplies."""
    seen, multiply = [], fused.multi_ternary_linear

    def spy(x_q, x_scale, prepacked, *rest):
        seen.append(len(prepacked))
        return multiply(x_q, x_scale, prepacked, *rest)

    monkeypatch.setattr(fused, "multi_ternary_linear", spy)
    # Steps with a cache would otherwise run in one call, without these stages.
    monkeypatch.setattr(transformer, "run_native", lambda *_: None)
    return seen


def packed_model(**changes):
    model = tiny_model(BitLinear, **changes)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2)
    pack(model)
    return model


def never(linears, x):
    return False


def all_logits(model, ids, mask):
    """Return logits without a cache, and those of a prompt and of two single tokens with one."""
    cache = model.new_cache(ids.shape[0], 16)
    parts = ((0, 5), (5, 6), (6, 7))
    steps = [model(ids[:, a:b], mask[:, a:b], cache) for a, b in parts]
    return torch.cat([model(ids, mask), *steps], dim=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sub_norms", [True, False])
@pytest.mark.parametrize("activation", ["relu2", "silu"])
@torch.no_grad()
def test_logits_have_the_same_bits_with_and_without_fusion(
    calls, monkeypatch, dtype, batch, sub_norms, activation
):
    model = packed_model(
        dtype=dtype, attn_sub_norm=sub_norms, ffn_sub_norm=sub_norms, hidden_act=activation
    )
    ids = torch.randint(96, (batch, 7))
    mask = torch.ones_like(ids)
    mask[-1, : batch - 1] = 0
    got = all_logits(model, ids, mask)
    # Where no norm stands before o_proj there is nothing to fuse.
    each = [3, 1, 2, 1] if sub_norms else [3, 2, 1]
    assert calls == each * 2 * 4
    monkeypatch.setattr(fused, "_take_codes", never)
    assert same_bits(all_logits(model, ids, mask), got)
    assert len(calls) == len(each) * 2 * 4


@torch.no_grad()
def test_fused_logits_are_those_of_the_training_form_on_every_backend(calls):
    model, ids = tiny_model(BitLinear), torch.randint(96, (2, 9))
    want = model(ids)
    pack(model)
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            assert same_bits(model(ids), want)
    assert len(calls) == 2 * 2 * STAGES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_each_stage_is_its_modules_one_after_another(calls, dtype):
    x, u = torch.randn(2, 3, 40).to(dtype), torch.randn(2, 3, 40).to(dtype)
    norm = RMSNorm(40, 0.03)
    norm.weight.data.normal_()
    linears = [BitLinear(40, n, bias=n == 9, dtype=dtype).packed() for n in (9, 4, 33)]
    for gated in (False, True):
        h = gate(x, u, "relu2", norm, linears) if gated else normalise(norm, x, linears)
        assert type(h) is QuantizedRows
        y = norm(fused.glu(x, u, "relu2") if gated else x)
        got = project(linears, h)
        assert all(same_bits(a, linear(y)) for a, linear in zip(got, linears, strict=True))
    assert calls == [3, 3]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("input_layernorm", 1),
        ("self_attn", 1),
        ("self_attn.q_proj", 1),
        ("self_attn.k_proj", 1),
        ("self_attn.v_proj", 1),
        ("self_attn.attn_sub_norm", 1),
        ("self_attn.o_proj", 1),
        ("post_attention_layernorm", 1),
        ("mlp", 1),
        ("mlp.gate_proj", 1),
        ("mlp.up_proj", 1),
        ("mlp.ffn_sub_norm", 1),
        ("mlp.down_proj", 1),
    ],
)
@torch.no_grad()
def test_hooks_fire_and_see_floats(calls, name, stages):
    model, ids, seen = packed_model(), torch.randint(96, (1, 5)), []
    want = model(ids)
    module = model.model.layers[1].get_submodule(name)
    calls.clear()
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(lambda module, inputs, *out: seen.append((*inputs[:1], *out)))
        assert same_bits(model(ids), want)
        handle.remove()
    assert len(seen) == 2
    assert all(type(value) is torch.Tensor for values in seen for value in values)
    # Only the stage that is watched is composed.
    assert len(calls) == 2 * (2 * STAGES - stages)
    assert same_bits(model(ids), want)
    assert len(calls) == 2 * (2 * STAGES - stages) + 2 * STAGES


@torch.no_grad()
def test_a_hook_that_changes_a_value_changes_the_logits():
    model, ids = packed_model(), torch.randint(96, (1, 5))
    want = model(ids)
    norm = model.model.layers[0].input_layernorm
    norm.register_forward_hook(lambda module, inputs, out: out * 2 + 1)
    assert not torch.equal(model(ids), want)


@torch.no_grad()
def test_a_hook_on_all_modules_sees_every_one(calls):
    model, seen = packed_model(), []
    ids = torch.randint(96, (1, 5))
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, out: seen.append(module)
    )
    try:
        model(ids)
    finally:
        hook.remove()
    assert not calls
    # Rotary tables are no submodule call of a layer; everything else is.
    assert {m for m in model.model.layers.modules() if not isinstance(m, nn.ModuleList)} <= {*seen}


@torch.no_grad()
def test_a_replaced_forward_runs(calls):
    model, ids, seen = packed_model(), torch.randint(96, (1, 5)), []
    layer = model.model.layers[0].mlp.up_proj

    def forward(x):
        seen.append(x)
        return PackedBitLinear.forward(layer, x)

    want = model(ids)
    calls.clear()
    layer.forward = forward
    assert same_bits(model(ids), want)
    assert len(seen) == 1
    assert len(calls) == 2 * STAGES - 1


class Doubled(RMSNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class Watched(Attention):
    def forward(self, x, step):
        assert type(x) is torch.Tensor
        return super().forward(x, step)


@torch.no_grad()
def test_norms_and_blocks_of_other_classes_are_called_as_modules(calls):
    model, ids = packed_model(), torch.randint(96, (1, 5))
    want = model(ids)
    first, second = model.model.layers
    # One gain in the place of another: doubling is exact.
    doubled = Doubled(48, 1e-5)
    doubled.weight.data.copy_(first.input_layernorm.weight / 2)
    first.input_layernorm = doubled
    second.self_attn.__class__ = Watched
    assert readers(second.self_attn) == ()
    calls.clear()
    assert same_bits(model(ids), want)
    assert calls == [1, 2, 1, 1, 2, 1]


@torch.no_grad()
def test_layers_that_are_not_all_packed_are_called_one_by_one_and_layouts_may_differ():
    x, norm = torch.randn(3, 40), RMSNorm(40, 1e-5)
    packed, latent = BitLinear(40, 8).packed(), BitLinear(40, 8)
    with use_backend("reference"):
        exchange = latent.packed()
    assert exchange.layout == "exchange"
    assert type(normalise(norm, x, [packed, latent])) is torch.Tensor
    assert type(normalise(norm, x, [nn.Linear(40, 8), packed])) is torch.Tensor
    assert type(normalise(norm, x, [])) is torch.Tensor
    assert type(gate(x, x, "relu2", None, [latent])) is torch.Tensor
    assert type(normalise(norm, x, [exchange])) is QuantizedRows
    # Codes have one form whatever the layout: each layer multiplies them in its own.
    h = normalise(norm, x, [packed, exchange])
    assert type(h) is QuantizedRows
    for y, layer in zip(project([packed, exchange], h), (packed, exchange), strict=True):
        assert same_bits(y, layer(norm(x)))


def test_nothing_is_fused_while_gradients_are_recorded_or_under_autocast():
    x, norm, linears = torch.randn(3, 40), RMSNorm(40, 1e-5), [BitLinear(40, 8).packed()]
    assert type(normalise(norm, x, linears)) is torch.Tensor
    with torch.no_grad():
        assert type(normalise(norm, x, linears)) is QuantizedRows
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = normalise(norm, x, linears)
            assert type(h) is torch.Tensor
            assert project(linears, h)[0].dtype == torch.bfloat16


@torch.no_grad()
def test_a_packed_decoder_compiles_in_one_graph_with_the_same_bits(calls):
    model, ids = packed_model(), torch.randint(96, (2, 9))
    want = model(ids)
    assert calls == [3, 1, 2, 1] * 2
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(ids), want)


def trained(model, ids):
    """Return the logits and every gradient of one step."""
    model.zero_grad()
    logits = model(ids)
    logits.logsumexp(-1).sum().backward()
    return [logits, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("amp", [False, True])
def test_training_quantises_a_common_input_once_and_has_the_same_gradients(monkeypatch, dtype, amp):
    model, ids, seen = tiny_model(BitLinear, dtype=dtype), torch.randint(96, (2, 9)), []
    share = fused.on_one_input

    def spy(layers, x):
        ys = share(layers, x)
        x_q = [y.grad_fn.saved_tensors[0] for y in ys]
        assert all(codes.data_ptr() == x_q[0].data_ptr() for codes in x_q)
        seen.append(len(layers))
        return ys

    monkeypatch.setattr(fused, "on_one_input", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        got = trained(model, ids)
        assert seen == [3, 2] * 2
        monkeypatch.setattr(fused, "_share_codes", lambda linears: False)
        want = trained(model, ids)
    assert seen == [3, 2] * 2
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_hooks_fire_in_training_and_see_floats(name):
    model, ids, seen = tiny_model(BitLinear), torch.randint(96, (1, 5)), []
    want = trained(model, ids)
    layer = getattr(model.model.layers[0].self_attn, name)
    layer.register_forward_hook(lambda module, inputs, out: seen.append((*inputs, out)))
    layer.register_full_backward_hook(lambda module, into, out: seen.append((*into, *out)))
    assert all(same_bits(a, b) for a, b in zip(trained(model, ids), want, strict=True))
    assert len(seen) == 2
    assert all(value.is_floating_point() for values in seen for value in values)
