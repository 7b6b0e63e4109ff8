"""Which layers pass over dead neurons: it shows in no bit, and follows what tokens were seen."""

import copy
import pickle
import threading

import pytest
import torch

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.models import native, sparsity
from bitnet_torch.models.sparsity import SETTLED, set_sparsity, sparsity_of
from bitnet_torch.nn import BitLinear, pack
from bitnet_torch.ops.decoder_step import decoder_step_on
from tests.bits import same_bits
from tests.models.tiny import tiny_model

BACKEND = decoder_step_on("cpu")
pytestmark = pytest.mark.skipif(BACKEND is None, reason="the CPU kernels are not built")
# Every special value of a gate: NaN is alive, zeros and the smallest negatives are not.
SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 2.0**-130, -(2.0**-130), 1e30]


@pytest.fixture(autouse=True)
def _small_matrices_count(monkeypatch):
    monkeypatch.setattr(sparsity, "LEAST_CODES", 1)
    monkeypatch.setattr(sparsity, "_fits", lambda *_: True)


def packed_model(dtype=torch.float32, **changes):
    model = tiny_model(BitLinear, **changes)
    pack(model)
    return model.to(dtype).eval()


def set_gate_bias(model, value):
    """Add ``value`` to every gate: -1e4 kills all neurons, 1e4 keeps all alive."""
    for layer in model.model.layers:
        gate = layer.mlp.gate_proj
        gate.bias = torch.as_tensor(value, dtype=model.dtype).expand(gate.out_features).clone()


@torch.inference_mode()
def decode(model, tokens, cache=None, seed=0):
    """Return the logits of one token after another."""
    cache = model.new_cache(1, 64) if cache is None else cache
    ids = torch.randint(96, (1, tokens), generator=torch.Generator().manual_seed(seed))
    return torch.cat([model.next_logits(ids[:, t : t + 1], None, cache) for t in range(tokens)])


def forms(model):
    return [
        (layer.up, layer.down) for layer in sparsity_of(model.model).report(model.model, BACKEND)
    ]


def dense_copy(model):
    other = copy.deepcopy(model)
    set_sparsity(other.model, "never", BACKEND)
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ffn_sub_norm": False, "mlp_bias": True},
        {"hidden_size": 300, "intermediate_size": 530, "head_dim": 16},
    ],
    ids=["2b-4t", "biases", "uneven"],
)
def test_tokens_have_the_same_bits_before_and_after_neurons_are_passed_over(dtype, changes):
    model = packed_model(dtype, **changes)
    dense = dense_copy(model)
    assert same_bits(decode(model, 2 * SETTLED), decode(dense, 2 * SETTLED))
    assert forms(model) == [(True, True)] * 2
    assert forms(dense) == [(False, False)] * 2


@pytest.mark.parametrize("alive", [True, False])
def test_all_neurons_alive_and_all_dead(alive):
    model = packed_model()
    set_gate_bias(model, 1e4 if alive else -1e4)
    dense = dense_copy(model)
    assert same_bits(decode(model, SETTLED + 3), decode(dense, SETTLED + 3))
    found = sparsity_of(model.model).report(model.model, BACKEND)
    assert {layer.live_gates for layer in found} == {float(alive)}
    assert {(layer.up, layer.down) for layer in found} == {(not alive, not alive)}


@pytest.mark.parametrize("value", SPECIAL, ids=str)
def test_a_special_gate_is_what_it_is_in_the_dense_step(value):
    model = packed_model()
    for layer in model.model.layers:
        gate = layer.mlp.gate_proj
        gate.bias = torch.zeros(gate.out_features)
        gate.bias[::7] = value
    dense = dense_copy(model)
    assert same_bits(decode(model, SETTLED + 3), decode(dense, SETTLED + 3))


def test_a_matrix_is_not_turned_over_before_enough_tokens_were_counted():
    model = packed_model()
    decode(model, SETTLED - 1)
    assert forms(model) == [(False, False)] * 2
    decode(model, 1)
    assert forms(model) == [(True, True)] * 2


def test_each_matrix_of_each_layer_is_chosen_for_itself():
    model = packed_model()
    for layer, bias in zip(model.model.layers, (1e4, 0.0), strict=True):
        gate = layer.mlp.gate_proj
        gate.bias = torch.full((gate.out_features,), bias)
    decode(model, SETTLED)
    assert [up for up, _ in forms(model)] == [False, True]


def test_what_came_alive_is_read_densely_again_and_small_changes_turn_nothing(monkeypatch):
    monkeypatch.setattr(sparsity, "EVERY", 1)
    model = packed_model()
    decode(model, SETTLED)
    live = sparsity_of(model.model).report(model.model, BACKEND)[0].live_gates
    # Above the threshold, but within the hysteresis.
    monkeypatch.setattr(sparsity, "THRESHOLDS", (live - 0.02, 0.9))
    decode(model, 4)
    assert forms(model)[0] == (True, True)
    monkeypatch.setattr(sparsity, "THRESHOLDS", (0.1, 0.1))
    dense = dense_copy(model)
    assert same_bits(decode(model, 4), decode(dense, 4))
    assert forms(model) == [(False, False)] * 2


def test_few_tokens_turn_every_matrix_back_and_a_long_prompt_does_not():
    model = packed_model()
    dense = dense_copy(model)
    decode(model, SETTLED)
    ids = torch.randint(96, (1, 40))
    with torch.inference_mode():
        long = [m.next_logits(ids, None, m.new_cache(1, 64)) for m in (model, dense)]
        assert forms(model) == [(True, True)] * 2
        few = [m.next_logits(ids[:, :3], None, m.new_cache(1, 64)) for m in (model, dense)]
    assert same_bits(*long)
    assert same_bits(*few)
    assert forms(model) == [(False, False)] * 2


def test_few_tokens_run_op_by_op_while_another_thread_is_in_the_decoder():
    model = packed_model()
    decode(model, SETTLED)
    ids = torch.randint(96, (1, 3))
    with torch.inference_mode():
        want = dense_copy(model).next_logits(ids, None, model.new_cache(1, 8))
        with sparsity_of(model.model).inside():
            got = model.next_logits(ids, None, model.new_cache(1, 8))
            assert forms(model) == [(True, True)] * 2
    assert same_bits(got, want)


def test_nothing_is_turned_over_while_another_thread_is_in_the_decoder():
    model = packed_model()
    with sparsity_of(model.model).inside():
        decode(model, SETTLED + 2)
    assert forms(model) == [(False, False)] * 2
    with sparsity_of(model.model).inside(), pytest.raises(ConfigurationError, match="thread"):
        set_sparsity(model.model, "never", BACKEND)


def test_threads_that_generate_with_one_model_get_the_bits_of_one():
    model = packed_model()
    want = decode(dense_copy(model), 24)
    found = []
    threads = [threading.Thread(target=lambda: found.append(decode(model, 24))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(got, want) for got in found)
    assert len(found) == 3


def test_who_saves_or_copies_a_model_sees_the_exchange_layout():
    model = packed_model()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    decode(model, SETTLED)
    assert forms(model) == [(True, True)] * 2
    after = model.state_dict()
    assert all(same_bits(before[name], after[name]) for name in before)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.model.layers[0].mlp.up_proj.layout == "panel8"
    model.load_state_dict(before)
    assert same_bits(decode(model, 3), decode(dense_copy(model), 3))


def test_a_turned_matrix_stays_where_it_is_in_memory():
    model = packed_model(hidden_size=256, intermediate_size=512)
    held = [m for m in model.modules() if hasattr(m, "prepacked")]
    before = [(m.prepacked.data_ptr(), m.prepacked.nbytes) for m in held]
    decode(model, SETTLED)
    assert forms(model) == [(True, True)] * 2
    assert [(m.prepacked.data_ptr(), m.prepacked.nbytes) for m in held] == before
    # Nothing holds the matrix as it was.
    assert native._PLANS.get(model.model) is None


def test_a_model_that_never_passes_over_counts_nothing():
    model = dense_copy(packed_model())
    decode(model, SETTLED + 2)
    assert sparsity_of(model.model).report(model.model, BACKEND)[0].live_gates is None
    set_sparsity(model.model, "auto", BACKEND)
    decode(model, SETTLED)
    assert forms(model) == [(True, True)] * 2


def test_silu_small_matrices_and_such_as_would_grow_are_left_alone(monkeypatch):
    silu = packed_model(hidden_act="silu")
    decode(silu, SETTLED + 2)
    monkeypatch.setattr(sparsity, "LEAST_CODES", 1 << 22)
    small = packed_model()
    decode(small, SETTLED + 2)
    monkeypatch.undo()
    monkeypatch.setattr(sparsity, "LEAST_CODES", 1)
    growing = packed_model()
    decode(growing, SETTLED + 2)
    assert forms(silu) == forms(small) == forms(growing) == [(False, False)] * 2


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigurationError, match="'always'"):
        set_sparsity(packed_model().model, "always", BACKEND)
