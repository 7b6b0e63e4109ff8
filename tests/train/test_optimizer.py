"""Parameters are sorted by what they are, and the optimizer's state survives switch and file."""

import pytest
import torch
from torch import nn

from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import convert
from bitnet_torch.quant import make_quantizer
from bitnet_torch.train.config import OptimizerConfig
from bitnet_torch.train.optimizer import (
    CombinedOptimizer,
    add_new_parameters,
    expected_moments,
    make_optimizer,
    moments,
    parameter_groups,
    restore_moments,
)
from tests.bits import same_bits

CONFIG = ModelConfig(
    vocab_size=256,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=16,
)
IDS = torch.arange(24).reshape(2, 12)


def built(seed=0, **settings):
    model = CausalLM(CONFIG, linear=nn.Linear, dtype=torch.float32)
    model.init_weights(seed)
    return model, make_optimizer(model, OptimizerConfig(learning_rate=1e-3, **settings))


def advance(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS).square().mean().backward()
        optimizer.step()


def names_of(model):
    names = {id(p): n for n, p in model.named_parameters()}
    return {k: [names[id(p)] for p in ps] for k, ps in parameter_groups(model).items()}


def test_every_parameter_is_in_the_group_of_its_kind():
    model, _ = built()
    before = names_of(model)
    assert before["head"] == ["lm_head.weight"]
    assert before["embeddings"] == ["model.embed_tokens.weight"]
    assert len(before["matrices"]) == 7
    assert all(name.endswith("proj.weight") for name in before["matrices"])
    assert all("norm" in name for name in before["norms"])
    assert before["scales"] == []
    convert(model, quantizer=make_quantizer("lsq"))
    after = names_of(model)
    assert all(name.endswith("quantizer.alpha") for name in after["scales"])
    assert len(after["scales"]) == 7
    assert {**after, "scales": []} == before
    assert sum(len(v) for v in after.values()) == len(list(model.parameters()))


def test_a_tied_head_is_an_embedding():
    config = ModelConfig(**{**vars(CONFIG), "tie_word_embeddings": True})
    groups = names_of(CausalLM(config, linear=nn.Linear))
    assert groups["embeddings"] == ["model.embed_tokens.weight"]
    assert groups["head"] == []


def test_muon_has_the_matrices_and_adamw_the_rest():
    _, optimizer = built(name="muon")
    assert isinstance(optimizer, CombinedOptimizer)
    muon, adamw = optimizer.members
    assert type(muon) is torch.optim.Muon
    assert [g["kind"] for g in muon.param_groups] == ["matrices"]
    assert [g["kind"] for g in adamw.param_groups] == ["head", "embeddings", "norms"]


def test_muon_makes_orthogonal_steps_of_the_size_of_adamws():
    model, optimizer = built(name="muon", weight_decay=0.0)
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    advance(model, optimizer)
    values = torch.linalg.svdvals((weight.detach() - before).double())
    # Five steps of the iteration leave singular values in about [0.7, 1.2] of one another, in
    # bfloat16; 0.2 * sqrt(max(N, K)) times the rate is the published size.
    size = 0.2 * 32**0.5 * 1e-3
    assert bool((values > 0.5 * size).all())
    assert bool((values < 1.4 * size).all())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_goes_through_names_and_back_bit_for_bit(name):
    model, optimizer = built(name=name)
    advance(model, optimizer, 3)
    saved = moments(model, optimizer)
    assert expected_moments(model, optimizer).keys() <= saved.keys()
    other, fresh = built(seed=9, name=name)
    other.load_state_dict(model.state_dict())
    restore_moments(other, fresh, saved, 3)
    for pair in ((model, optimizer), (other, fresh)):
        advance(*pair)
    assert all(same_bits(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_files_without_a_count_of_steps_get_that_of_the_run():
    model, optimizer = built()
    advance(model, optimizer, 3)
    saved = {k: v for k, v in moments(model, optimizer).items() if not k.endswith(".step")}
    restore_moments(model, optimizer, saved, 3)
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_switch_keeps_the_state_and_adds_what_is_new(name):
    model, optimizer = built(name=name)
    advance(model, optimizer, 2)
    before = {k: v.clone() for k, v in moments(model, optimizer).items()}
    convert(model, quantizer=make_quantizer("seq"))
    config = OptimizerConfig(learning_rate=1e-3, scale_rate=0.1)
    assert add_new_parameters(optimizer, model, config) == 7
    assert add_new_parameters(optimizer, model, config) == 0
    after = moments(model, optimizer)
    assert all(same_bits(after[k], v) for k, v in before.items())
    assert optimizer.param_groups[-1]["kind"] == "scales"
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(1e-4)
    alpha = model.model.layers[0].mlp.up_proj.quantizer.alpha
    start = alpha.detach().clone()
    advance(model, optimizer)
    assert not same_bits(alpha.detach(), start)
    assert float(optimizer.state[alpha]["step"]) == 1.0
