"""`bitnet bench peers` on sizes that take no time, with and without llama.cpp."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from bitnet_torch.bench import peer_models, peer_suite, session
from bitnet_torch.bench.cases import Run
from bitnet_torch.bench.environment import describe_environment
from bitnet_torch.bench.peer_suite import LLAMA, PEERS, PeerPlan, peer_rows
from bitnet_torch.bench.random_checkpoint import PRESETS
from bitnet_torch.bench.rows_file import read_rows
from bitnet_torch.bench.timing import Effort
from bitnet_torch.cli.main import main
from bitnet_torch.errors import BitNetError, ConfigurationError, MissingDependencyError
from bitnet_torch.generate import load

TINY = replace(PRESETS["tiny"], num_hidden_layers=1)
# Widths that TQ2_0 can hold.
SMALL = replace(TINY, hidden_size=256, intermediate_size=512, head_dim=0, vocab_size=512)
RUN_EFFORT = Effort(pairs=12, least_pairs=12, seconds=0.0, sample_seconds=1e-6)


@pytest.fixture(scope="module")
def run():
    return Run(describe_environment(), None, RUN_EFFORT)


@pytest.fixture
def plan(tmp_path):
    return PeerPlan(TINY, tmp_path / "work", prompt=9, before=5, peers=PEERS[:2])


@pytest.fixture
def without_llama(monkeypatch):
    monkeypatch.setattr(peer_suite, "llama_version", lambda: None)


def test_ours_is_timed_beside_both_dtypes_of_pytorch(run, plan):
    result = peer_rows(run, plan, lambda row: None)
    assert not result.missing
    assert [(r.subject.op, r.subject.m, r.subject.baseline) for r in result.rows] == [
        (part, m, peer) for part, m in (("decode", 1), ("prefill", 9)) for peer in PEERS[:2]
    ]
    for row in result.rows:
        assert row.verified == "bits"
        assert "sqrt(products)" in row.baseline_verified
        assert row.ratio.pairs == 12
        assert row.subject.layers == 1
    # One series of ours serves all peers of a part.
    assert result.rows[0].value == result.rows[1].value


def test_a_peer_that_is_not_installed_is_named_and_the_rest_is_measured(run, plan, without_llama):
    result = peer_rows(run, replace(plan, peers=(LLAMA, PEERS[0])), lambda row: None)
    assert list(result.missing) == [LLAMA]
    assert "pip install 'bitnet-torch[peers]'" in result.missing[LLAMA]
    assert {row.subject.baseline for row in result.rows} == {PEERS[0]}


def test_ours_alone_is_measured_where_no_peer_is_installed(run, plan, without_llama):
    result = peer_rows(run, replace(plan, peers=(LLAMA,)), lambda row: None)
    assert [row.baseline for row in result.rows] == [None, None]


def test_library_layers_hold_what_the_codes_stand_for(plan):
    model, _ = peer_suite.prepare(plan)
    plain = peer_models.as_library_layers(model, torch.float32)
    ours, theirs = (m.model.layers[0].mlp.down_proj for m in (model, plain))
    assert type(theirs) is torch.nn.Linear
    assert torch.equal(theirs.weight, ours.latent_weight().sign() * ours.weight_scale)
    assert type(plain.lm_head) is torch.nn.Linear
    assert torch.equal(plain.lm_head.weight, model.model.embed_tokens.weight.float())


@pytest.mark.parametrize("name", ["up_proj", "o_proj"])
def test_a_peer_with_other_weights_is_not_timed(run, plan, monkeypatch, name):
    right = peer_suite.as_library_layers

    def wrong(model, dtype):
        made = right(model, dtype)
        for module, linear in made.named_modules():
            if module.endswith(name):
                linear.weight.data = linear.weight.data.roll(1, 0)
        return made

    monkeypatch.setattr(peer_suite, "as_library_layers", wrong)
    with pytest.raises(BitNetError, match=r"torch float32 is not near and is not timed.*bound"):
        peer_rows(run, plan, lambda row: None)


def test_the_model_is_taken_from_the_folder_if_it_is_there_and_fits(plan):
    peer_suite.prepare(plan)
    file = plan.folder / "checkpoint" / "model.safetensors"
    before = file.stat().st_mtime_ns
    model, _ = peer_suite.prepare(plan)
    assert file.stat().st_mtime_ns == before
    assert model.config.hidden_act == "silu"
    other = replace(plan, config=replace(TINY, num_hidden_layers=2))
    with pytest.raises(ConfigurationError, match="name another folder"):
        peer_suite.prepare(other)


def test_models_that_do_not_fit_the_memory_are_refused(plan, run, monkeypatch):
    free = type("Free", (), {"available": 1000})
    monkeypatch.setattr(peer_suite.psutil, "virtual_memory", lambda: free)
    with pytest.raises(ConfigurationError, match="fewer layers or peers"):
        peer_rows(run, plan, lambda row: None)


@pytest.mark.parametrize("sizes", [{"prompt": 1}, {"prompt": 256}, {"before": 0}, {"before": 256}])
def test_tokens_beyond_the_context_are_refused(tmp_path, sizes):
    with pytest.raises(ConfigurationError, match=r"must lie in \[2, 255\]"):
        PeerPlan(TINY, tmp_path, **sizes)


def test_llama_cpp_that_is_absent_is_a_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("bitnet_torch.diagnostics.extras.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"bitnet-torch\[peers\]"):
        peer_models.LlamaModel(tmp_path / "none.gguf", 8, 1)


def test_the_command_writes_rows_a_table_and_a_picture(tmp_path, capfd, without_llama, monkeypatch):
    monkeypatch.setattr("bitnet_torch.bench.limits.last_level_cache", lambda: 1 << 20)
    begin = session.begin
    monkeypatch.setattr(session, "begin", lambda effort: begin(effort, attempts=1))
    sizes = (
        "--preset",
        "tiny",
        "--layers",
        "1",
        "--prompt",
        "4",
        "--before",
        "3",
        "--seconds",
        "0",
    )
    out = tmp_path / "out"
    arguments = ("--only", "decode", "--threads", "1", "--out", str(out), "--json")
    assert main(["bench", "peers", *sizes, *arguments]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert list(shown["missing"]) == [LLAMA]
    (table,) = out.glob("*-peers-1-layers.txt")
    (picture,) = out.glob("*-peers-1-layers.png")
    assert {str(table), str(picture)} < set(shown["files"])
    assert "not measured: llama.cpp: llama-cpp-python is not installed" in table.read_text()
    (lines,) = out.glob("*.jsonl")
    assert [row.subject.baseline for row in read_rows(lines)] == list(PEERS[:2])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="no llama-cpp-python (extra peers)")
@pytest.mark.parametrize("head", ["int8", "float"])
def test_llama_cpp_reads_the_same_model_and_is_near(run, tmp_path, head):
    plan = PeerPlan(SMALL, tmp_path, head=head, prompt=9, before=5)
    result = peer_rows(run, plan, lambda row: None)
    assert not result.missing
    assert {row.subject.baseline for row in result.rows} == {
        *PEERS[:2],
        "llama.cpp TQ2_0, Q6_K head",
    }
    assert result.rows[0].environment.versions["llama_cpp"]
    assert load(tmp_path / "TQ2_0-Q6_K.gguf").model.config.hidden_act == "silu"
