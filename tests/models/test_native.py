"""All layers in one call shows in no bit, and gives way to whoever watches or changes them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet_torch.models import native, transformer
from bitnet_torch.nn import BitLinear, pack
from bitnet_torch.nn.norm import RMSNorm
from bitnet_torch.ops import use_backend
from bitnet_torch.ops.decoder_step import decoder_step_on
from tests.bits import same_bits
from tests.models.tiny import tiny_model

pytestmark = pytest.mark.skipif(
    decoder_step_on("cpu") is None, reason="the CPU kernels are not built"
)
SHAPES = {
    "2b-4t": {},
    "llama": {"attn_sub_norm": False, "ffn_sub_norm": False, "hidden_act": "silu"},
    "qwen3": {"attn_sub_norm": False, "ffn_sub_norm": False, "hidden_act": "silu", "qk_norm": True},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "one head a key head": {"num_key_value_heads": 4, "head_dim": 6},
    "uneven": {"hidden_size": 42, "intermediate_size": 33, "num_hidden_layers": 3},
}


@pytest.fixture
def runs(monkeypatch):
    """Collect, for each pass of a decoder, whether it was run in one call."""
    seen, run = [], transformer.run_native

    def spy(*args):
        done = run(*args)
        seen.append(done is not None)
        return done

    monkeypatch.setattr(transformer, "run_native", spy)
    return seen


def packed_model(**changes):
    model = tiny_model(BitLinear, **changes)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data.uniform_(0.5, 2)
    pack(model)
    return model


def steps(model, ids, mask=None, dtype=None, parts=((0, 3), (3, 4), (4, 7))):
    """Return the logits of pieces of ``ids`` over one cache, and what the cache holds then."""
    cache = model.new_cache(ids.shape[0], 16, dtype)
    pieces = [model(ids[:, a:b], None if mask is None else mask[:, a:b], cache) for a, b in parts]
    held = [cache.storage] if cache.scales is None else [cache.storage, cache.scales]
    return [torch.cat(pieces, 1), *(t.clone() for t in held)]


def op_by_op(monkeypatch, model, *args, **how):
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "run_native", lambda *_: None)
        return steps(model, *args, **how)


def equal(got, want):
    return all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_a_step_has_the_bits_of_its_ops(runs, monkeypatch, shape, dtype):
    model = packed_model(dtype=dtype, **SHAPES[shape])
    for batch, held in ((1, None), (3, "int8"), (2, None)):
        ids = torch.randint(96, (batch, 7))
        mask = torch.ones_like(ids)
        mask[-1, : batch - 1] = 0
        for some in (None, mask):
            got = steps(model, ids, some, held)
            assert runs == [True] * 3
            assert equal(got, op_by_op(monkeypatch, model, ids, some, dtype=held))
            runs.clear()


@torch.no_grad()
def test_the_number_of_threads_shows_in_no_bit(runs, threads):
    model = packed_model(hidden_size=512, intermediate_size=768, head_dim=128)
    ids = torch.randint(96, (2, 7))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(steps(model, ids))
    assert all(runs)
    assert all(equal(result, results[0]) for result in results)


@torch.no_grad()
def test_a_long_piece_and_a_pass_without_a_cache_run_op_by_op(runs):
    model = packed_model()
    ids = torch.randint(96, (1, 40))
    with_cache = model(ids, None, model.new_cache(1, 40))
    assert same_bits(model(ids), with_cache)
    assert runs == [False, False]


@torch.no_grad()
def test_numbers_that_are_not_finite_pass_as_in_the_ops(runs, monkeypatch):
    model = packed_model(dtype=torch.bfloat16)
    weight = model.model.embed_tokens.weight
    weight[1], weight[2], weight[3] = float("nan"), float("inf"), 3e38
    ids = torch.tensor([[0, 1, 4, 5], [2, 4, 5, 6], [3, 3, 4, 5]])
    parts = ((0, 2), (2, 4))
    got = steps(model, ids, parts=parts)
    assert runs == [True] * 2
    assert equal(got, op_by_op(monkeypatch, model, ids, parts=parts))


class Loud(RMSNorm):
    """A norm of somebody else."""


def _hook(model):
    return model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *_: None)


def _early_hook(model):
    return model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: None)


def _global_hook(model):
    return nn.modules.module.register_module_forward_hook(lambda *_: None)


@pytest.mark.parametrize("watch", [_hook, _early_hook, _global_hook])
@torch.no_grad()
def test_who_watches_a_module_sees_it(runs, monkeypatch, watch):
    model, ids = packed_model(), torch.randint(96, (1, 7))
    want = steps(model, ids)
    handle = watch(model)
    try:
        assert equal(steps(model, ids), want)
    finally:
        handle.remove()
    assert equal(steps(model, ids), want)
    assert runs == [True] * 3 + [False] * 3 + [True] * 3


@torch.no_grad()
def test_a_replaced_forward_runs(runs):
    model, ids = packed_model(), torch.randint(96, (1, 7))
    before = steps(model, ids)
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: torch.zeros(1, x.shape[1], 48)
    assert not same_bits(steps(model, ids)[0], before[0])
    del mlp.forward
    assert equal(steps(model, ids), before)
    assert runs == [True] * 3 + [False] * 3 + [True] * 3


class Nothing(TorchDispatchMode):
    """Sees every op of PyTorch."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_gradients_autocast_dispatch_modes_and_other_backends_get_the_ops(runs):
    model, ids = packed_model(dtype=torch.bfloat16), torch.randint(96, (1, 7))
    steps(model, ids)
    assert runs == [False] * 3
    with torch.no_grad():
        for context in (Nothing(), use_backend("reference"), torch.autocast("cpu", torch.bfloat16)):
            with context:
                steps(model, ids)
        assert runs == [False] * 12
        with use_backend("cpu"):
            steps(model, ids)
    assert runs[12:] == [True] * 3


def _other_layer(model):
    model.model.layers[1] = packed_model(seed=5).model.layers[1]


def _other_scale(model):
    model.model.layers[1].mlp.up_proj.weight_scale.mul_(1.5)


def _other_codes(model):
    state = packed_model(seed=3).state_dict()
    model.load_state_dict(state)


def _other_dtype(model):
    model.to(torch.bfloat16)


def _other_gains(model):
    model.model.norm.weight.data = torch.full_like(model.model.norm.weight, 0.25)


def _other_eps(model):
    model.model.layers[0].input_layernorm.eps = 0.5


@pytest.mark.parametrize(
    "change",
    [_other_layer, _other_scale, _other_codes, _other_dtype, _other_gains, _other_eps],
)
@torch.no_grad()
def test_a_step_follows_what_changes_in_the_model(runs, monkeypatch, change):
    model, ids = packed_model(), torch.randint(96, (1, 7))
    before = steps(model, ids)
    change(model)
    after = steps(model, ids)
    assert runs == [True] * 6
    assert not same_bits(after[0], before[0])
    assert equal(after, op_by_op(monkeypatch, model, ids))


@torch.no_grad()
def test_what_is_not_ours_or_not_packed_runs_op_by_op(runs, caplog):
    ids = torch.randint(96, (1, 7))
    steps(tiny_model(), ids)
    model = packed_model()
    model.model.layers[0].input_layernorm = Loud(48, 1e-5)
    with caplog.at_level("DEBUG", logger=native.__name__):
        steps(model, ids)
    assert runs == [False] * 6
    assert caplog.messages == ["a decoder runs op by op: a Loud stands for a RMSNorm"]


@torch.no_grad()
def test_copies_and_pickles_of_a_model_have_its_bits(runs):
    model, ids = packed_model(), torch.randint(96, (1, 7))
    want = steps(model, ids)
    twin, thawed = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    del model
    assert equal(steps(twin, ids), want)
    assert equal(steps(thawed, ids), want)
    assert all(runs)
