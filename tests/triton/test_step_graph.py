"""Replayed decode steps of the Triton kernels, launch by launch, with the arguments as recorded."""

import pytest

from bitnet_torch import BitLinear, ops, pack
from bitnet_torch.generate import step_graph
from bitnet_torch.generate.head import HeadedModel, Int8Head
from bitnet_torch.generate.step_graph import with_graphs
from bitnet_torch.ops import layouts
from bitnet_torch_triton import policy
from bitnet_torch_triton._launch import KernelConfig
from bitnet_torch_triton.predict.gpu import A100
from bitnet_torch_triton.predict.step import Sizes, decode_launches
from bitnet_torch_triton.rules import Rule
from tests.bits import same_bits
from tests.models.tiny import tiny_model
from tests.recorder import FakeRecorder, logits_of, recording_on, text
from tests.triton.device import DEVICE, RUNS_KERNELS

pytestmark = RUNS_KERNELS

# Here the launches are what counts. One token's own kernel takes the interpreter much longer.
CHEAP = Rule("ternary_linear", KernelConfig(block_m=16, block_n=64, block_k=64), "gemm")
SMALL = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "vocab_size": 64}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}


@pytest.fixture
def recorder(monkeypatch):
    """Return what records on the kernels' device: CUDA itself, or what stands for it."""
    # Layers hold the codes as they do on a GPU.
    monkeypatch.setitem(layouts._PREFERRED, DEVICE, layouts.LAYOUTS["planar64"])
    record = step_graph.record_on_cuda if DEVICE == "cuda" else FakeRecorder()
    if DEVICE == "cpu":
        policy.prefer((CHEAP,))
    with ops.use_backend("triton"), recording_on(DEVICE, "triton", record):
        yield record
    policy.prefer(())


def packed_model(**changes):
    model = tiny_model(BitLinear, **{**SMALL, **changes}).to(DEVICE).eval()
    pack(model)
    return model


@pytest.mark.slow
def test_twenty_replays_of_a_padded_batch_have_the_bits_of_the_eager_model(recorder):
    model = packed_model()
    graphed = with_graphs(model, model)
    ids, mask = text(2, 21, DEVICE)
    # One eager pass over all of it, whose bits are those of eager steps and take less time.
    want = model(ids, mask, model.new_cache(2, 24, "int8"))[:, 2:].unbind(1)
    got = logits_of(graphed, ids, mask, "int8")
    assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))
    assert (graphed.replays, graphed.reason) == (20, "")


def test_replays_split_the_attention_over_chunks_and_launch_what_is_predicted(
    recorder, monkeypatch
):
    monkeypatch.setattr("bitnet_torch_triton.attention.processors", lambda device: 1000)
    model = packed_model(max_position_embeddings=700)
    reader = HeadedModel(model, Int8Head(model, "int8"), None)
    graphed = with_graphs(reader, model)
    given = text(1, 4, DEVICE)
    # Longer than a chunk of keys: a program for each of three, two of which see no key.
    got, want = (logits_of(r, *given, length=600) for r in (graphed, reader))
    assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))
    assert (graphed.replays, graphed.reason) == (3, "")
    if DEVICE == "cpu":
        (graph,) = recorder.graphs
        predicted = decode_launches(A100, head="int8", size=Sizes(layers=1))
        assert len(graph.launched) == len(predicted), graph.launched
