"""The recipes of the field as settings of a run: each resumes to the same bits and exports."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

import bitnet_torch as bt
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, HBitLinear, NormedLinear, QuantLinear, convert
from bitnet_torch.train import TrainConfig, finish, train, trainer
from bitnet_torch.train.checkpoint import list_checkpoints, read_progress
from bitnet_torch.train.config import TernaryConfig
from bitnet_torch.train.switch import insert_sub_norms, make_ternary, warm_up
from tests.bits import same_bits
from tests.train.plays import tiny_config, tiny_values

WITHOUT_NORMS = {"attn_sub_norm": False, "ffn_sub_norm": False}
RECIPES = {
    "lambda warm-up": {"ternary": {"warmup": 6}},
    "muon, two stages, learnt steps": {
        "ternary": {"quantizer": "lsq", "warmup": 3},
        "optimizer": {"name": "muon", "scale_rate": 0.1},
        "schedule": {"decay": "two-stage"},
    },
    "norms inserted at the switch": {
        "ternary": {"sub_norms": True, "quantizer": "twn"},
        "model": WITHOUT_NORMS,
    },
    "rotated, int4, groups": {
        "ternary": {
            "rotate": ["o_proj", "down_proj"],
            "activation_bits": 4,
            "granularity": "group",
            "group_size": 16,
        },
    },
}


SLOW = ("norms inserted at the switch", "rotated, int4, groups")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Pictures have tests of their own, and take longer than these runs."""
    monkeypatch.setattr(finish, "draw_curve", lambda *_: None)
    monkeypatch.setattr(finish, "draw_telemetry", lambda *_: None)


def configured(root, out, recipe):
    values = tiny_values(root, out)
    values["run"]["checkpoint_every"] = 100
    for section, change in recipe.items():
        values[section] = values.get(section, {}) | change
    return TrainConfig.from_dict(values)


def rows(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "tokens_per_second"} for x in lines]


def stop_after(steps, monkeypatch):
    """Interrupt a run after each of these steps, once."""
    original, left = trainer._save_if_due, list(steps)

    def save(state, metrics, interrupt):
        if left and state.step == left[0]:
            left.pop(0)
            interrupt.requested = True
        original(state, metrics, interrupt)

    monkeypatch.setattr(trainer, "_save_if_due", save)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RECIPES]
)
def test_a_recipe_resumes_to_the_same_bits_and_exports(name, tmp_path, monkeypatch):
    recipe = RECIPES[name]
    whole = train(configured(tmp_path / "plays", tmp_path / "whole", recipe))
    # At the switch, in the warm-up, at its last step and after it.
    stop_after([12, 13, 15, 18, 19], monkeypatch)
    config = configured(tmp_path / "plays", tmp_path / "parts", recipe)
    for i in range(5):
        with pytest.raises(KeyboardInterrupt):
            train(config, resume=i > 0)
    result = train(config, resume=True)
    assert result.bits == whole.bits
    states = [
        safetensors.torch.load_file(list_checkpoints(tmp_path / out / "checkpoints")[-1])
        for out in ("whole", "parts")
    ]
    assert states[0].keys() == states[1].keys()
    assert [n for n in states[0] if not same_bits(states[0][n], states[1][n])] == []
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    recent = [
        read_progress(list_checkpoints(tmp_path / out / "checkpoints")[-1]).recent_losses
        for out in ("whole", "parts")
    ]
    # Since the switch, which starts the guard anew.
    assert recent[0] == recent[1]
    assert len(recent[0]) == 12
    check_export(name, result, states[0])


def test_random_numbers_of_a_continued_run_go_on_where_they_were(tmp_path, monkeypatch):
    original = trainer._loss

    def noisy(state, windows):
        return original(state, windows) * (1 + 0.1 * torch.rand(()))

    monkeypatch.setattr(trainer, "_loss", noisy)
    before = torch.get_rng_state()
    train(configured(tmp_path / "plays", tmp_path / "whole", {}))
    assert torch.equal(torch.get_rng_state(), before)
    stop_after([7], monkeypatch)
    config = configured(tmp_path / "plays", tmp_path / "parts", {})
    with pytest.raises(KeyboardInterrupt):
        train(config)
    torch.rand(5)
    train(config, resume=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def check_export(name, result, state):
    if name.startswith("rotated"):
        assert (result.form, result.model) == ("checkpoint", None)
        return
    assert result.form == "packed"
    model = bt.load(result.model).model
    ids = torch.arange(20)[None] + 70
    config = TrainConfig.from_dict(result.config)
    twin = CausalLM(config.model, linear=nn.Linear)
    make_ternary(twin, config.ternary)
    warm_up(twin, config.ternary, config.ternary.warmup)
    prefix = "model."
    twin.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=False
    )
    assert same_bits(model(ids), twin(ids))


def test_the_warm_up_begins_at_full_precision_and_ends_ternary(tmp_path, monkeypatch):
    seen = {}
    original = trainer._step

    def step(state, rate):
        layers = [m for m in state.model.modules() if isinstance(m, QuantLinear)]
        plain = any(type(m) is BitLinear for m in state.model.modules())
        seen[state.step] = {layer.strength for layer in layers} or plain
        return original(state, rate)

    monkeypatch.setattr(trainer, "_step", step)
    values = {"ternary": {"warmup": 4}}
    result = train(configured(tmp_path / "plays", tmp_path / "out", values))
    assert seen[11] is False
    assert [seen[s] for s in range(12, 16)] == [{0.0}, {0.25}, {0.5}, {0.75}]
    assert all(seen[s] is True for s in range(16, 24))
    losses = {row["step"]: row["loss"] for row in rows(tmp_path / "out") if "loss" in row}
    straight = train(configured(tmp_path / "plays", tmp_path / "straight", {}))
    others = {row["step"]: row["loss"] for row in rows(tmp_path / "straight") if "loss" in row}
    assert result.form == straight.form == "packed"
    # Row s is of the step s - 1; full strength would raise the loss of step 12 at once.
    assert [losses[s] for s in range(1, 13)] == [others[s] for s in range(1, 13)]
    assert losses[13] < others[13]


def test_a_spike_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    original = trainer._loss

    def loss(state, windows):
        return original(state, windows) * (9.0 if state.step == 45 else 1.0)

    monkeypatch.setattr(trainer, "_loss", loss)
    config = tiny_config(
        tmp_path / "plays", tmp_path / "out", schedule={"steps": 60, "qat_start": 60}
    )
    with pytest.raises(bt.BitNetError, match=r"step 45: the loss is .* times the median") as error:
        train(config)
    assert "the last good checkpoint is" in str(error.value)
    assert "step-00000044.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ternary": {"warmup": 12}}, "ternary.warmup must be below the 12 steps after"),
        ({"ternary": {"quantizer": "median"}}, r"\[ternary\]: quantizer must be one of"),
        ({"ternary": {"granularity": "group"}}, r"\[ternary\]: group_size must be given"),
        ({"ternary": {"activation_bits": 3}}, "ternary.activation_bits must be one of"),
        ({"ternary": {"sub_norms": True}}, "ternary.sub_norms must be false where"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name must be one of"),
        ({"optimizer": {"momentum": 1.0}}, r"optimizer.momentum must lie in \[0, 1\)"),
        ({"optimizer": {"scale_rate": 0.0}}, "optimizer.scale_rate must be finite and above 0"),
        ({"schedule": {"switch_at": 2.0}}, "schedule.switch_at must lie in"),
        ({"run": {"spike_factor": 0.5}}, "run.spike_factor must be above 1, or 0"),
        ({"run": {"telemetry_every": -1}}, "run.telemetry_every must not be negative"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_run(change, says, tmp_path):
    with pytest.raises(ConfigurationError, match=says):
        configured(tmp_path / "plays", tmp_path / "out", change)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rotate": ("o_proj",)}, "cannot be said in a model folder"),
        ({"activation_bits": 4}, "cannot be said in one"),
        ({"granularity": "row"}, "a model folder has one per matrix"),
        ({"quantizer": "seq-2"}, "has the codes -3"),
        ({}, None),
        ({"quantizer": "seq", "warmup": 5, "sub_norms": True}, None),
    ],
)
def test_what_no_folder_holds_is_known_beforehand(settings, says):
    reason = TernaryConfig(**settings).not_exported
    assert reason is None if says is None else says in reason


def plain_model(**changes):
    config = TrainConfig.from_dict(tiny_values_of_model({**WITHOUT_NORMS, **changes})).model
    return CausalLM(config, linear=nn.Linear, dtype=torch.float32)


def tiny_values_of_model(changes):
    model = {
        "vocab_size": 256,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    return {
        "data": {"files": "*", "held_out": ["x"], "context": 8},
        "model": model | changes,
        "schedule": {"steps": 2, "qat_start": 2, "warmup": 0},
        "run": {"out": "out"},
    }


def test_inserted_norms_are_the_decoders_own(tmp_path):
    model = plain_model()
    names = insert_sub_norms(model)
    assert names == tuple(
        f"model.layers.{i}.{side}"
        for i in range(2)
        for side in ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
    )
    reference = plain_model(attn_sub_norm=True, ffn_sub_norm=True)
    assert model.config == reference.config
    reference.load_state_dict(model.state_dict())
    ids = torch.arange(10)[None]
    assert same_bits(model(ids), reference(ids))
    convert(model)
    bt.save_pretrained(model, tmp_path / "m")
    assert same_bits(bt.load(tmp_path / "m").model(ids), model(ids))
    with pytest.raises(ConfigurationError, match="has no layer called o_proj or down_proj"):
        insert_sub_norms(model)


def test_one_of_two_norms_is_inserted_where_the_other_is():
    model = plain_model(attn_sub_norm=True)
    assert all(name.endswith("ffn_sub_norm") for name in insert_sub_norms(model))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = nn.Linear(8, 16)
        self.down_proj = nn.Linear(16, 8)

    def forward(self, x):
        return self.down_proj(self.up_proj(x).relu())


def test_in_any_other_model_a_norm_is_put_before_the_layer():
    model = nn.Sequential(Block(), Block())
    weight = model[0].down_proj.weight
    assert insert_sub_norms(model, eps=1e-6) == ("0.down_proj.rms_norm", "1.down_proj.rms_norm")
    assert type(model[0].down_proj) is NormedLinear
    assert model[0].down_proj.linear.weight is weight
    x = torch.randn(3, 8)
    inner = model[0].up_proj(x).relu()
    normed = inner * torch.rsqrt(inner.square().mean(-1, keepdim=True) + 1e-6)
    # The norm of this project counts in fixed point of 23 bits.
    torch.testing.assert_close(
        model[0](x),
        nn.functional.linear(normed, weight, model[0].down_proj.linear.bias),
        rtol=0,
        atol=16 * 2**-21,
    )
    convert(model)
    want = model(x)
    bt.pack(model)
    assert same_bits(model(x), want)


def test_the_switch_makes_what_the_settings_say():
    model = plain_model()
    make_ternary(model, TernaryConfig(rotate=("down_proj",), granularity="row"))
    kinds = {type(m) for m in model.modules() if isinstance(m, BitLinear)}
    assert kinds == {BitLinear, HBitLinear}
    assert model.model.layers[0].mlp.up_proj.granularity == "row"
