import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from bitnet_torch.errors import BitNetError, MissingDependencyError
from bitnet_torch.io.checkpoint import load_pretrained
from bitnet_torch.memory import HybridMemoryPool, with_recovery
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import BitLinear, PackedBitLinear
from bitnet_torch.train import bits_per_byte, switch, train, trainer
from bitnet_torch.train.card import restore_float
from bitnet_torch.train.checkpoint import list_checkpoints, load_checkpoint
from bitnet_torch.train.data import load_corpus
from bitnet_torch.train.metrics import read_metrics
from bitnet_torch.train.optimizer import make_optimizer
from bitnet_torch.train.ternarise import ternarise
from tests.bits import same_bits
from tests.train.plays import tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("plays"), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def result(config):
    return train(config)


def trained_form(config):
    model = CausalLM(config.model, linear=BitLinear)
    path = list_checkpoints(Path(config.run.out) / "checkpoints")[-1]
    load_checkpoint(path, model, make_optimizer(model, config.optimizer))
    return model


def test_a_run_leaves_its_model_its_record_its_metrics_and_its_curve(config, result, tmp_path):
    out = Path(config.run.out)
    names = {p.name for p in out.iterdir()}
    pictures = {"curve.png", "telemetry.png"}
    assert names == {"checkpoints", "metrics.jsonl", "model", "result.json"} | pictures
    record = json.loads((out / "result.json").read_text())
    assert record["steps"] == result.steps == 24
    assert record["tokens"] == 24 * 4 * 32
    assert record["config"] == config.to_dict()
    assert record["form"] == "packed"
    assert record["versions"]["torch"] == torch.__version__


def test_the_loss_falls_and_the_log_has_every_step(config, result):
    rows = read_metrics(Path(config.run.out) / "metrics.jsonl")
    losses = [r["loss"] for r in rows if "loss" in r]
    assert len(losses) == 24
    assert losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert losses[-1] < losses[0] - 1
    held_out = [r["step"] for r in rows if "held_out_bits_per_byte" in r]
    assert held_out == [6, 12, 18, 24]


def test_a_row_holds_the_loss_of_its_own_step_and_not_of_those_since_the_row_before(
    config, result, tmp_path
):
    rows = read_metrics(Path(config.run.out) / "metrics.jsonl")
    every_step = {r["step"]: r["loss"] for r in rows if "loss" in r}
    fewer = {"log_every": 5, "out": str(tmp_path / "out")}
    train(tiny_config(tmp_path / "plays", tmp_path / "out", run=fewer))
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    losses = {r["step"]: r["loss"] for r in rows if "loss" in r}
    assert losses == {step: every_step[step] for step in (5, 10, 15, 20, 24)}


def test_the_exported_model_has_the_bits_of_the_trained_one(config, result):
    packed, tokenizer = load_pretrained(result.model)
    assert any(isinstance(m, PackedBitLinear) for m in packed.modules())
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    ids = load_corpus(config.data).held_out[None, :32]
    with torch.no_grad():
        assert same_bits(packed(ids), trained_form(config)(ids))


def test_the_record_is_the_figure_of_the_exported_model_over_the_whole_text(config, result):
    packed, _ = load_pretrained(result.model)
    held_out = load_corpus(config.data).held_out
    torch.set_num_threads(config.run.threads)
    figure = bits_per_byte(packed, held_out, 32, 16, batch=config.data.batch)
    torch.set_num_threads(2)
    assert figure == result.held_out_bits_per_byte
    assert result.held_out_bytes == len(held_out)


def test_the_switch_keeps_parameters_and_moments(config, tmp_path, monkeypatch):
    seen = {}

    def spy(model, **settings):
        seen["before"] = {n: p for n, p in model.named_parameters()}
        report = convert(model, **settings)
        seen["after"] = {n: p for n, p in model.named_parameters()}
        return report

    convert = switch.convert
    monkeypatch.setattr(switch, "convert", spy)
    run = tiny_config(tmp_path / "plays", tmp_path / "out", schedule={"steps": 13})
    steps = []
    monkeypatch.setattr(
        trainer, "_save_if_due", lambda state, *_: steps.append(first_moment(state))
    )
    train(run)
    assert all(seen["before"][n] is p for n, p in seen["after"].items())
    # One step changes an average of decay 0.9 by a tenth of the gradient: it is no restart.
    assert steps[12]["step"] == 13
    assert torch.linalg.vector_norm(steps[11]["moment"]) > 0


def first_moment(state):
    parameter = state.model.model.layers[0].mlp.up_proj.weight
    saved = state.optimizer.state[parameter]
    return {"step": int(saved["step"]), "moment": saved["exp_avg"].clone()}


def test_a_full_precision_run_never_switches_and_exports_floats(tmp_path):
    run = tiny_config(tmp_path / "plays", tmp_path / "out", schedule={"qat_start": 24})
    result = train(run)
    assert result.form == "float"
    model = restore_float(tmp_path / "out")
    assert not any(isinstance(m, BitLinear) for m in model.modules())
    held_out = load_corpus(run.data).held_out
    torch.set_num_threads(1)
    figure = bits_per_byte(model, held_out, 32, 16, batch=4)
    torch.set_num_threads(2)
    assert figure == result.held_out_bits_per_byte


def test_a_run_can_be_ternary_from_scratch(tmp_path):
    run = tiny_config(tmp_path / "plays", tmp_path / "out", schedule={"qat_start": 0})
    assert train(run).form == "packed"


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_checkpoint(
    tmp_path, monkeypatch
):
    original = trainer._loss

    def loss(state, windows):
        value = original(state, windows)
        return value * math.nan if state.step == 9 else value

    monkeypatch.setattr(trainer, "_loss", loss)
    with pytest.raises(BitNetError, match="step 9: the loss is nan") as caught:
        train(tiny_config(tmp_path / "plays", tmp_path / "out"))
    assert "step-00000008.safetensors" in str(caught.value)
    saved = list_checkpoints(tmp_path / "out" / "checkpoints")
    assert saved[-1].name == "step-00000008.safetensors"


def test_the_bar_shows_loss_bits_speed_and_time_left_without_a_terminal(tmp_path, capfd):
    train(tiny_config(tmp_path / "plays", tmp_path / "out"))
    err = capfd.readouterr().err
    assert "24/24" in err
    assert "loss " in err
    assert "bits/byte" in err
    assert "held-out " in err
    assert "tokens/s" in err


@pytest.mark.parametrize(("library", "extra"), [("tqdm", "train"), ("matplotlib", "plot")])
def test_a_missing_library_is_named_before_anything_is_written(
    library, extra, tmp_path, monkeypatch
):
    def require(module, *, extra):
        if module == library:
            raise MissingDependencyError(f"pip install 'bitnet-torch[{extra}]'")

    monkeypatch.setattr(trainer, "require", require)
    with pytest.raises(MissingDependencyError, match=rf"bitnet-torch\[{extra}\]"):
        train(tiny_config(tmp_path / "plays", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_number_of_threads_is_put_back(tmp_path, threads):
    threads(2)
    train(tiny_config(tmp_path / "plays", tmp_path / "out"))
    assert torch.get_num_threads() == 2


def test_quantisation_aware_training_beats_ternarising_afterwards(tmp_path):
    shape = {"steps": 120, "warmup": 10}
    every = {"eval_every": 120, "checkpoint_every": 120}
    rate = {"learning_rate": 8e-3}
    figures = {}
    for name, start in (("float", 120), ("ternary", 60)):
        run = tiny_config(
            tmp_path / "plays",
            tmp_path / name,
            schedule={**shape, "qat_start": start},
            run=every,
            optimizer=rate,
        )
        figures[name] = train(run).held_out_bits_per_byte
    afterwards = restore_float(tmp_path / "float")
    ternarise(afterwards, "absmean", "matrix")
    held_out = load_corpus(run.data).held_out
    ternarised_bits = bits_per_byte(afterwards, held_out, 32, 16)
    assert figures["ternary"] < ternarised_bits
    # Training gives back more than half of what ternarising costs.
    assert figures["ternary"] - figures["float"] < (ternarised_bits - figures["float"]) / 2


def test_matrices_decay_and_norms_and_embeddings_do_not(config):
    model = CausalLM(config.model, linear=nn.Linear)
    groups = {g["kind"]: g for g in make_optimizer(model, config.optimizer).param_groups}
    names = {id(p): n for n, p in model.named_parameters()}
    assert {kind: g["weight_decay"] for kind, g in groups.items()} == {
        "matrices": config.optimizer.weight_decay,
        "embeddings": 0,
        "norms": 0,
    }
    assert all(names[id(p)].endswith("proj.weight") for p in groups["matrices"]["params"])
    assert all("norm" in names[id(p)] for p in groups["norms"]["params"])
    assert [names[id(p)] for p in groups["embeddings"]["params"]] == ["model.embed_tokens.weight"]
    assert len(names) == sum(len(g["params"]) for g in groups.values())


def test_a_run_that_runs_out_of_memory_recovers_and_keeps_its_own_steps(
    config, result, tmp_path, monkeypatch
):
    pool, loss, failures = HybridMemoryPool.instance(), trainer._loss, iter([True] * 3)
    others = iter([True])

    def short_of_memory(state, windows):
        if state.step == 5 and next(failures, False):
            raise torch.OutOfMemoryError("no room for the logits")
        return loss(state, windows)

    def fail_once(pieces):
        if next(others, False):
            raise torch.OutOfMemoryError("of somebody else")

    with_recovery(fail_once, 1, name="other work", device="cpu", pool=pool)
    monkeypatch.setattr(trainer, "_loss", short_of_memory)
    recovered = train(tiny_config(tmp_path / "plays", tmp_path / "run"))
    assert len(recovered.recoveries) == 3
    assert all("step 5 ran out of memory" in step for step in recovered.recoveries)
    for step, action in zip(recovered.recoveries, ("trim", "empty cache", "smaller"), strict=True):
        assert f"); {action}" in step
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["recoveries"] == recovered.recoveries
    assert result.recoveries == []
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [
        [r["loss"] for r in log if "loss" in r]
        for log in (rows, read_metrics(Path(config.run.out) / "metrics.jsonl"))
    ]
    # Until it ran out, the run is the other's twin bit for bit; then it sums in two pieces.
    assert losses[0][:5] == losses[1][:5]
    # The mean of 4 * 32 terms of one sign in another order: each addition errs by eps at most.
    eps = torch.finfo(torch.float32).eps
    assert losses[0][5] == pytest.approx(losses[1][5], rel=2 * 4 * 32 * eps)
    assert len(losses[0]) == 24
