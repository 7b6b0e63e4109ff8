"""Kept codes are never stale, whoever writes to a weight and however."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

import bitnet_torch as bt
from bitnet_torch import BitLinear
from bitnet_torch.errors import ConfigurationError, QuantizationError
from bitnet_torch.nn.code_cache import _CACHES
from bitnet_torch.ops import quantize_pack_weight
from tests.bits import same_bits

X = torch.linspace(-3, 2, 5 * 64).reshape(5, 64)


@pytest.fixture(params=["matrix", "row"])
def layer(request):
    torch.manual_seed(0)
    return BitLinear(64, 24, granularity=request.param)


@pytest.fixture
def optimizer(layer):
    return torch.optim.SGD(layer.parameters(), lr=0.1)


def fresh(layer):
    return quantize_pack_weight(layer.weight.detach(), layer.granularity)


def has_fresh_codes(layer):
    return all(same_bits(a, b) for a, b in zip(layer.codes(), fresh(layer), strict=True))


def test_a_step_ternarises_once_however_many_forward_passes_it_has(layer, optimizer):
    with bt.train.cache_codes(layer, optimizer) as cache:
        for step in range(1, 4):
            for _ in range(3):
                layer(X).square().sum().backward()
            assert (cache.quantised, cache.reused) == (step, 2 * step)
            optimizer.step()
            optimizer.zero_grad()


def test_the_graphs_of_a_step_hold_one_copy_of_the_codes(layer, optimizer):
    bt.train.cache_codes(layer, optimizer)
    saved = [layer(X).grad_fn.saved_tensors[2].data_ptr() for _ in range(3)]
    assert len(set(saved)) == 1


def average(layer):
    return [p.detach() * 0.5 - 0.1 for p in layer.parameters()]


def through_numpy(layer):
    layer.weight.detach().numpy()[3] *= -1


def through_a_pointer(layer):
    torch.frombuffer(layer.weight.detach().numpy(), dtype=torch.float32)[17] = 9.0


def swap_in_an_average(layer):
    for parameter, mean in zip(layer.parameters(), average(layer), strict=True):
        parameter.data.copy_(mean)


def swap_the_storage(layer):
    layer.weight.data = layer.weight.data.flip(0)


def swap_two_rows(layer):
    layer.weight.data[[0, 1]] = layer.weight.data[[1, 0]]


def one_weight_by_one_bit(layer):
    layer.weight.data.view(torch.int32)[5, 5] += 1 << 22


def grow(layer):
    layer.weight, layer.out_features = nn.Parameter(torch.randn(28, 64)), 28


WRITES = {
    "data in place": lambda layer: layer.weight.data.neg_(),
    "data replaced": swap_the_storage,
    "an average swapped in": swap_in_an_average,
    "numpy": through_numpy,
    "a pointer": through_a_pointer,
    "two rows exchanged": swap_two_rows,
    "one weight": one_weight_by_one_bit,
    "foreach": lambda layer: torch._foreach_mul_([p.data for p in layer.parameters()], -0.5),
    "load_state_dict": lambda layer: layer.load_state_dict({"weight": torch.randn(24, 64)}),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(
        {"weight": torch.randn(24, 64)}, assign=True
    ),
    "a new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(24, 64))),
    "another dtype": lambda layer: layer.to(torch.bfloat16),
    "scaled by two": lambda layer: layer.weight.data.mul_(2),
    "no_grad": lambda layer: torch.no_grad()(layer.weight.mul_)(-1),
    "another granularity": lambda layer: setattr(
        layer, "granularity", {"matrix": "row", "row": "matrix"}[layer.granularity]
    ),
    "another shape": grow,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("stepped", [False, True], ids=["before the first step", "after a step"])
def test_no_write_between_two_steps_leaves_stale_codes(layer, optimizer, write, stepped):
    bt.train.cache_codes(layer, optimizer)
    if stepped:
        layer(X).sum().backward()
        optimizer.step()
    before, was = layer(X), fresh(layer)
    write(layer)
    assert not all(same_bits(a, b) for a, b in zip(fresh(layer), was, strict=True))
    assert has_fresh_codes(layer)
    assert not same_bits(layer(X), before)
    assert same_bits(layer(X), layer.packed()(X))


@pytest.mark.parametrize(
    "kind",
    [
        lambda p: torch.optim.SGD(p, lr=0.5, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.1, foreach=False),
    ],
    ids=["foreach", "fused", "loop"],
)
def test_training_has_the_bits_it_has_without(kind):
    def run(cached):
        torch.manual_seed(3)
        model = nn.Sequential(BitLinear(64, 32), nn.ReLU(), BitLinear(32, 8))
        optimizer = kind(model.parameters())
        if cached:
            bt.train.cache_codes(model, optimizer)
        for _ in range(4):
            for half in (X[:3], X[3:]):
                model(half).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    assert all(same_bits(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_a_closure_inside_a_step_and_a_step_that_fails_keep_nothing(layer):
    class Broken(torch.optim.SGD):
        def step(self, closure):
            with torch.no_grad():
                layer.weight.neg_()
            closure()
            raise ArithmeticError

    optimizer = Broken(layer.parameters(), lr=0.1)
    cache = bt.train.cache_codes(layer, optimizer)
    layer(X)
    with pytest.raises(ArithmeticError):
        optimizer.step(lambda: layer(X))
    layer(X)
    assert (cache.quantised, cache.reused) == (3, 0)


def test_what_inference_mode_made_is_not_kept_for_training(layer, optimizer):
    bt.train.cache_codes(layer, optimizer)
    with torch.inference_mode():
        layer(X)
    layer(X).sum().backward()
    assert layer.weight.grad is not None


def test_codes_that_somebody_overwrote_are_not_used(layer, optimizer):
    bt.train.cache_codes(layer, optimizer)
    layer.codes()[0].zero_()
    assert has_fresh_codes(layer)


def test_copies_and_pickles_hold_no_codes_and_start_afresh(layer, optimizer):
    cache = bt.train.cache_codes(layer, optimizer)
    layer(X)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin not in _CACHES
        assert twin.__dict__.keys() == layer.__dict__.keys()
        twin.weight.data.neg_()
        assert has_fresh_codes(twin)
    assert (cache.quantised, cache.reused) == (1, 0)


def test_a_weight_that_became_infinite_is_an_error_and_not_its_old_codes(layer, optimizer):
    bt.train.cache_codes(layer, optimizer)
    layer(X)
    layer.weight.data[2, 3] = float("inf")
    with pytest.raises(QuantizationError, match=r"weight \[2, 3\] is inf"):
        layer(X)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_reuses_the_codes_and_gives_the_same_gradients(
    layer, optimizer, use_reentrant
):
    x = X.clone().requires_grad_()
    want = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))
    with bt.train.cache_codes(layer, optimizer) as cache:
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant)
        y.square().sum().backward()
        assert (cache.quantised, cache.reused) == (1, 1)
    assert same_bits(x.grad, want[0])
    assert same_bits(layer.weight.grad, want[1])


def test_compiled_code_keeps_nothing_and_sees_every_write(layer, optimizer):
    cache = bt.train.cache_codes(layer, optimizer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(X), layer.packed()(X))
    layer.weight.data.neg_()
    assert same_bits(compiled(X), layer.packed()(X))
    assert cache.reused == 0


def test_removing_ends_it_and_a_layer_is_served_by_one_cache_at_a_time(layer, optimizer):
    cache = bt.train.cache_codes(layer, optimizer)
    with pytest.raises(ConfigurationError, match="1 of these 1 layers have a code cache already"):
        bt.train.cache_codes(layer, optimizer)
    cache.remove()
    assert layer not in _CACHES
    layer(X)
    assert cache.quantised == 0
    bt.train.cache_codes(layer, optimizer)


def test_a_layer_that_is_gone_takes_its_codes_with_it():
    layer = BitLinear(8, 4)
    bt.train.cache_codes(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    layer(X[:, :8])
    before = len(_CACHES)
    del layer
    gc.collect()
    assert len(_CACHES) == before - 1


def test_wrong_arguments_are_named(layer, optimizer):
    with pytest.raises(ConfigurationError, match="no BitLinear in Linear; convert it first"):
        bt.train.cache_codes(nn.Linear(4, 4), optimizer)
    with pytest.raises(ConfigurationError, match=r"at least one torch\.optim\.Optimizer, got none"):
        bt.train.cache_codes(layer)
    with pytest.raises(ConfigurationError, match="got BitLinear"):
        bt.train.cache_codes(layer, layer)
