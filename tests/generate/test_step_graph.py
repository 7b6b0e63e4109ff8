"""Replayed decode steps: the bits of eager ones, and when steps are not replayed."""

import pytest
import torch

from bitnet_torch import BitLinear, pack
from bitnet_torch.generate import LanguageModel, step_graph
from bitnet_torch.generate.head import HeadedModel, Int8Head
from bitnet_torch.generate.step_graph import with_graphs
from bitnet_torch.io.tokenizer import IdsOnly
from tests.bits import same_bits
from tests.models.tiny import tiny_model
from tests.recorder import FakeRecorder, logits_of, recording_on, text


@pytest.fixture
def recorder():
    with recording_on("cpu", "cpu", FakeRecorder()) as recorder:
        yield recorder


def packed_model(**changes):
    model = tiny_model(BitLinear, **changes).eval()
    pack(model)
    return model


def same(got, want):
    return [same_bits(g, w) for g, w in zip(got, want, strict=True)]


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("head", ["float", "int8"])
def test_twenty_replays_have_the_bits_of_twenty_eager_steps(recorder, dtype, head):
    model = packed_model()
    reader = model if head == "float" else HeadedModel(model, Int8Head(model, "int8"), None)
    graphed = with_graphs(reader, model)
    given = text(2, 21)
    assert all(same(logits_of(graphed, *given, dtype), logits_of(reader, *given, dtype)))
    # The first step warms up.
    assert (graphed.replays, graphed.reason) == (20, "")


def set_on_the_host(cache, tokens, mask=None):
    cache._set_filled(cache.filled + tokens)


def sliced_on_the_host(tables, positions):
    at = slice(int(positions.min()), int(positions.max()) + 1)
    return tables.cos[at][None, None], tables.sin[at][None, None]


def test_a_number_of_the_host_in_a_step_is_seen_at_a_later_token(recorder, monkeypatch):
    monkeypatch.setattr("bitnet_torch.models.KVCache.advance", set_on_the_host)
    model = packed_model()
    graphed, cache, again = with_graphs(model, model), model.new_cache(1, 5), model.new_cache(1, 5)
    ids = [torch.tensor([[i]]) for i in range(4)]
    got = [graphed.next_logits(i, None, cache).clone() for i in ids]
    assert same(got, [model.next_logits(i, None, again) for i in ids]) == [True, True, True, False]


def test_a_step_that_waits_for_the_device_is_refused(recorder, monkeypatch):
    monkeypatch.setattr("bitnet_torch.models.rotary.RotaryTables.forward", sliced_on_the_host)
    model = packed_model()
    graphed = with_graphs(model, model)
    logits_of(graphed, *text(1, 3))
    assert (graphed.replays, graphed.reason) == (
        0,
        "recording was refused: RuntimeError: item.default waits for the device",
    )


def refuse(step):
    step()
    raise RuntimeError("operation not permitted when stream is capturing\nsecond line")


def test_where_recording_is_refused_steps_are_eager_and_the_reason_is_logged(recorder, caplog):
    model, given = packed_model(), text(1, 4)
    want = logits_of(model, *given)
    with recording_on("cpu", "cpu", refuse), caplog.at_level("WARNING"):
        graphed = with_graphs(model, model)
        assert all(same(logits_of(graphed, *given), want))
    assert graphed.replays == 0
    assert graphed.reason.endswith("RuntimeError: operation not permitted when stream is capturing")
    assert caplog.text.count("did not record a decode step") == 1


def hook(model):
    model.model.norm.register_forward_hook(lambda module, inputs, out: None)


def other_weights(model):
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.clone())


@pytest.mark.parametrize(
    ("change", "reason"), [(hook, "a module has a hook"), (other_weights, "have changed")]
)
def test_a_change_of_the_model_between_two_tokens_ends_the_replays(recorder, change, reason):
    model = packed_model()
    graphed, cache = with_graphs(model, model), model.new_cache(1, 5)
    ids = torch.ones((1, 1), dtype=torch.int64)
    for _ in range(3):
        graphed.next_logits(ids, None, cache)
    change(model)
    graphed.next_logits(ids, None, cache)
    assert graphed.replays == 2
    assert reason in graphed.reason


def test_another_int8_head_is_made_where_its_weights_change_between_two_tokens(recorder):
    with torch.inference_mode(False):
        model = packed_model()
        reader = HeadedModel(model, Int8Head(model, "int8"), None)
    graphed, ids = with_graphs(reader, model), torch.ones((1, 1), dtype=torch.int64)
    cache = graphed.new_cache(1, 5)
    before = [graphed.next_logits(ids, None, cache).clone() for _ in range(3)]
    with torch.inference_mode(False), torch.no_grad():
        model.lm_head.weight.mul_(2)
    after = graphed.next_logits(ids, None, cache)
    assert (graphed.replays, "head have changed" in graphed.reason) == (2, True)
    assert after.abs().max() > 1.5 * before[-1].abs().max()


def test_each_cache_has_a_graph_of_its_own(recorder):
    model = packed_model()
    graphed = with_graphs(model, model)
    ids = torch.ones((1, 1), dtype=torch.int64)
    for length in (4, 9):
        cache = model.new_cache(1, length)
        for _ in range(4):
            graphed.next_logits(ids, None, cache)
    assert (len(recorder.graphs), graphed.replays) == (2, 6)


def test_generation_says_how_many_passes_were_replayed(recorder):
    lm = LanguageModel(packed_model(), IdsOnly(96, (), "it is a test"))
    result = lm.complete(torch.tensor([1, 2, 3]), max_new_tokens=6)
    assert (result.passes, result.replays) == (5, 4)
    guessed = lm.complete(torch.tensor([1, 2, 1, 2, 1, 2]), max_new_tokens=9, speculative=4)
    assert guessed.replays < guessed.passes
    assert guessed.ids == lm.complete(torch.tensor([1, 2, 1, 2, 1, 2]), max_new_tokens=9).ids


def test_a_screened_head_is_never_recorded_and_says_why(recorder):
    model = packed_model()
    graphed = with_graphs(HeadedModel(model, Int8Head(model, "screened"), 1), model)
    assert "screened head" in graphed.reason


def test_a_device_without_graphs_gives_back_the_reader_itself():
    model = packed_model()
    assert set(step_graph.RECORDERS) == {"cuda"}
    assert with_graphs(model, model) is model
