"""A model beside the limits of the machine: the work of both is the same, and ours is right."""

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.bench import floor_suite
from bitnet_torch.bench.cases import Run
from bitnet_torch.bench.environment import describe_environment
from bitnet_torch.bench.floor_suite import CASES, FloorPlan, floor_cases
from bitnet_torch.bench.floors import multiplying, reading
from bitnet_torch.bench.random_checkpoint import PRESETS, make_checkpoint
from bitnet_torch.bench.timing import Effort
from bitnet_torch.errors import BackendUnavailableError, BitNetError, ConfigurationError
from bitnet_torch.models import transformer

EFFORT = Effort(pairs=12, least_pairs=12, seconds=0.0, sample_seconds=1e-6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("floors") / "model", PRESETS["tiny"])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(floor_suite, "PRODUCTS", ((40, 64), (64, 32)))
    monkeypatch.setattr(floor_suite, "PROMPTS", (3, 5))
    monkeypatch.setattr(floor_suite, "COLD_BYTES", 4096)
    monkeypatch.setattr("bitnet_torch.bench.floors.last_level_cache", lambda: 1 << 16)


def plan(folder, *only):
    return FloorPlan(folder, 1, only, prompt=140, contexts=(9, 20))


def test_every_case_is_verified_and_stands_beside_its_floor(checkpoint):
    run = Run(describe_environment(), None, EFFORT)
    rows = [run.row(make()) for make in floor_cases(plan(checkpoint))]
    assert [(r.subject.op, r.subject.baseline, r.subject.m, r.subject.n) for r in rows] == [
        ("gemv", "reading", 1, 40),
        ("dtypes", "float32", 1, 40),
        ("dtypes", "float32", 1, 40),
        ("gemv", "reading", 1, 64),
        ("dtypes", "float32", 1, 64),
        ("dtypes", "float32", 1, 64),
        ("gemm", "maddubs256", 3, 40),
        ("gemm", "maddubs256", 5, 40),
        ("decode", "reading", 1, 9),
        ("decode", "reading", 1, 20),
        ("decode of 8", "maddubs256+maddwd256", 8, 9),
        ("prefill", "maddubs256", 140, 0),
    ]
    assert all(row.verified == "bits" and row.ratio.pairs == 12 for row in rows)
    assert len({row.subject for row in rows}) == len(rows)


def test_a_floor_of_decoding_counts_codes_head_keys_and_values(checkpoint):
    short, long = (make() for make in floor_cases(plan(checkpoint, "decode")))
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64
    # Keys and values of one head of 32, in float32 or as the model computes.
    size = torch.empty(0, dtype=getattr(torch, short.subject.dtype)).element_size()
    assert short.nbytes == 2 * layer // 4 + 256 * 64 + 10 * 2 * 2 * 32 * size
    assert long.nbytes - short.nbytes == 11 * 2 * 2 * 32 * size
    assert short.macs == 2 * layer


def test_what_is_decoded_in_one_call_is_compared_with_its_ops(checkpoint, monkeypatch):
    run = transformer.run_native

    def wrong(*args):
        hidden = run(*args)
        return None if hidden is None else -hidden

    monkeypatch.setattr(transformer, "run_native", wrong)
    case = next(iter(floor_cases(plan(checkpoint, "decode"))))()
    with pytest.raises(BitNetError, match="decode is wrong and is not timed"):
        case.candidate.check()


def test_a_floor_reads_all_it_says_from_beyond_the_cache():
    floor = reading(1 << 16, 1)
    assert len(floor.calls) == 4
    assert floor.check() == "a limit"
    for call in floor.calls:
        call()


def test_an_instruction_that_is_not_there_is_refused():
    with pytest.raises(BackendUnavailableError, match="has no maddubs1024"):
        multiplying(1, maddubs1024=5)


def test_unknown_cases_and_long_contexts_are_refused(checkpoint):
    with pytest.raises(ConfigurationError, match=f"'gem' is no case; known are {', '.join(CASES)}"):
        next(floor_cases(plan(checkpoint, "gem")))
    with pytest.raises(ConfigurationError, match="new token: 257 tokens do not fit"):
        list(floor_cases(FloorPlan(checkpoint, 1, ("decode",), contexts=(256,))))
    with pytest.raises(ConfigurationError, match="prompt: 512 tokens do not fit the model's 256"):
        list(floor_cases(FloorPlan(checkpoint, 1, ("prefill",))))


def test_a_case_that_is_not_asked_for_need_not_fit(checkpoint):
    assert len(list(floor_cases(FloorPlan(checkpoint, 1, ("decode",), contexts=(9,))))) == 1


def test_other_backends_have_no_floors(checkpoint):
    with ops.use_backend("reference"), pytest.raises(BackendUnavailableError, match="CPU kernels"):
        next(floor_cases(plan(checkpoint)))
