"""The suites on sizes that take no time: every case is right, and says what it did."""

import functools
import time
from dataclasses import replace

import pytest
import torch

from bitnet_torch import ops
from bitnet_torch.bench import gemlite, gradient_cases, linear_cases, ops_suite, train_parts
from bitnet_torch.bench.cases import Run
from bitnet_torch.bench.device_timing import DeviceSampler
from bitnet_torch.bench.environment import describe_environment, file_stem
from bitnet_torch.bench.linear_cases import Shape, float_bound, make_problem
from bitnet_torch.bench.memory_suite import memory_rows
from bitnet_torch.bench.model_suite import model_cases
from bitnet_torch.bench.ops_suite import OpsPlan
from bitnet_torch.bench.random_checkpoint import PRESETS, make_checkpoint
from bitnet_torch.bench.row import row_from_json
from bitnet_torch.bench.telemetry_case import telemetry_case
from bitnet_torch.bench.timing import Effort
from bitnet_torch.bench.train_suite import (
    TrainPlan,
    saved_inputs_row,
    train_case,
    train_cases,
)
from bitnet_torch.bench.verify import same_bits
from bitnet_torch.errors import BitNetError, CheckpointError, ConfigurationError

EFFORT = Effort(pairs=12, least_pairs=12, seconds=0.0, sample_seconds=1e-6)
PLAN = OpsPlan(layers=((36, 20), (64, 48), (24, 24)), tokens=(1, 3), head=Shape(1, 200, 40))


@pytest.fixture(scope="module")
def run():
    return Run(describe_environment(), None, EFFORT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bench") / "model", PRESETS["tiny"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_case_of_the_ops_is_verified_and_makes_a_row(run, dtype):
    rows = [run.row(make()) for make in ops_suite.cases(replace(PLAN, dtype=dtype))]
    assert {row.subject.op for row in rows} == ops_suite.covered_ops()
    for row in rows:
        # A float sum has a bound, everything else has bits.
        bounded = row.subject.op in gradient_cases.RECIPES
        assert ("2^-24" in row.verified) if bounded else (row.verified == "bits")
        assert row.baseline_verified
        assert row.ratio.pairs == 12
        assert row.nbytes > 0
        assert row.environment.threads == torch.get_num_threads()
    subjects = [row.subject for row in rows]
    assert len(set(subjects)) == len(subjects)


def test_every_declared_op_has_a_case_or_is_named_as_having_none():
    assert ops_suite.covered_ops() | set(ops_suite.uncovered_ops()) == set(ops.all_ops())
    assert ops_suite.covered_ops() <= set(ops.all_ops())


class Replayed:
    """A device of its own clock, whose graphs are the calls themselves."""

    def record(self, work):
        return work

    def seconds(self, work):
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin


def test_cases_are_timed_by_the_clock_of_their_device_and_say_so(run):
    on_device = replace(run, make_sampler=lambda c: DeviceSampler(c.calls, 1e-6, Replayed()))
    (maker,) = ops_suite.cases(replace(PLAN, layers=((24, 24),), tokens=(1,), only=("glu",)))
    row = on_device.row(maker())
    assert row.timed == "events round a graph of 1 calls; events round a graph of 1 calls"
    assert row_from_json(row.to_json()) == row


def test_a_gpu_gets_the_rows_that_its_integer_product_needs(monkeypatch):
    x_q = torch.ones(3, 8, dtype=torch.int8)
    assert linear_cases._rows_for_int_mm(x_q) is x_q
    monkeypatch.setattr(linear_cases.F, "pad", lambda x, pad: pad)

    class OnGpu:
        device = torch.device("cuda")

        def __len__(self):
            return 3

    assert linear_cases._rows_for_int_mm(OnGpu()) == (0, 0, 0, 29)


def test_gemlite_is_beside_the_linear_layer_on_a_gpu_where_it_is_installed(monkeypatch):
    made = []

    class Helper:
        """Stands for gemlite.helper: a layer that is the reference's."""

        class A8W158_INT_dynamic:
            def __init__(self, device, dtype):
                made.append((device, dtype))

            def from_weights(self, weight, weight_scale):
                return lambda x: (x.float() @ weight.float().T * weight_scale).to(x.dtype)

    monkeypatch.setattr(gemlite, "require", lambda module, extra: Helper)
    assert not gemlite.serves(128, 128)
    monkeypatch.setattr(gemlite, "is_installed", lambda: True)
    assert gemlite.serves(128, 256)
    assert not gemlite.serves(100, 256)
    problem = make_problem(Shape(2, 128, 128), torch.bfloat16)
    peer = linear_cases._baseline(gemlite.NAME, problem, "warm")
    assert "2 (x_scale/2" in peer.check()
    assert made == [("cpu", torch.bfloat16)]
    names = [op for op, _ in linear_cases.linear_cases(problem.shape, torch.float32, "warm", "cpu")]
    there = linear_cases.linear_cases(problem.shape, torch.float32, "warm", "triton", "cuda")
    assert [op for op, _ in there].count("bit_linear_prepacked") == 1 + names.count(
        "bit_linear_prepacked"
    )


def test_only_the_ops_asked_for_are_measured(run):
    makers = ops_suite.cases(replace(PLAN, only=("pack_codes",)))
    assert {make().subject.op for make in makers} == {"pack_codes"}


@pytest.mark.parametrize("temperature", ["cold", "warm"])
def test_a_row_says_whether_its_buffers_were_cold(monkeypatch, temperature):
    monkeypatch.setattr("bitnet_torch.bench.buffers.last_level_cache", lambda: 4096)
    plan = OpsPlan(layers=((64, 64),), tokens=(1,), only=("bit_linear",), temperature=temperature)
    (case,) = (make() for make in ops_suite.cases(plan))
    assert case.subject.buffers == temperature
    assert (len(case.candidate.calls) > 1) == (temperature == "cold")
    pointers = {call.args[1].data_ptr() for call in case.candidate.calls}
    assert len(pointers) == len(case.candidate.calls)


def test_a_kernel_with_one_wrong_bit_is_not_timed(run, monkeypatch):
    right = ops.bit_linear_prepacked

    def wrong(*args):
        y = right(*args)
        y.view(torch.int16)[0, 0] ^= 1
        return y

    monkeypatch.setattr(ops, "bit_linear_prepacked", wrong)
    maker = next(iter(ops_suite.cases(replace(PLAN, only=("bit_linear_prepacked",)))))
    with pytest.raises(BitNetError, match="bit_linear_prepacked by cpu is wrong and is not timed"):
        run.row(maker())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bound_of_a_float_product_is_tight_enough_to_catch_a_wrong_one(dtype):
    problem = make_problem(Shape(4, 64, 256), dtype)
    bound, _ = float_bound(problem, dtype)
    other = make_problem(Shape(4, 64, 256), dtype, seed=1)
    assert ((other.y.double() - problem.y.double()).abs() > bound).double().mean() > 0.5


def test_bytes_and_products_of_a_linear_case_are_those_of_its_shape():
    plan = OpsPlan(layers=((64, 48),), tokens=(3,), only=("bit_linear_prepacked",))
    case = next(iter(ops_suite.cases(plan)))()
    assert case.macs == 3 * 64 * 48
    assert case.nbytes == 64 * 48 // 4 + 2 * (3 * 48 + 3 * 64)


def test_a_model_is_verified_against_the_reference_and_timed(run, checkpoint):
    prefill, decode = (run.row(make()) for make in model_cases(checkpoint, prompt=9))
    assert (prefill.subject.op, prefill.subject.m) == ("prefill", 9)
    assert (decode.subject.op, decode.subject.m) == ("decode", 1)
    assert prefill.tokens_per_s == pytest.approx(9e6 / prefill.value.median)
    assert prefill.verified == decode.verified == "bits"


def test_decoding_is_timed_at_the_same_place_each_time(checkpoint):
    *_, decode = (make() for make in model_cases(checkpoint, prompt=9))
    (call,) = decode.candidate.calls
    first = call()
    assert same_bits("again", [call] * 3, first)() == "bits"


@pytest.mark.parametrize("prompt", [0, 256, 10**6])
def test_a_prompt_that_leaves_no_room_is_refused(checkpoint, prompt):
    with pytest.raises(ConfigurationError, match=r"prompt must lie in \[1, 255\]"):
        next(iter(model_cases(checkpoint, prompt)))


def test_a_training_step_is_timed_beside_full_precision(run):
    row = run.row(train_case(TrainPlan(hidden=32, layers=1, batch=2, context=8)))
    assert (row.subject.candidate, row.subject.baseline) == ("BitLinear", "nn.Linear")
    assert row.verified == "bits"
    assert row.ratio.pairs == 12


def test_the_parts_of_a_step_are_verified_and_timed_each(run):
    rows = [run.row(make()) for make in train_cases(TrainPlan(32, 1, 2, 8, intermediate=64))]
    assert [row.subject.op for row in rows[:3]] == ["step", "forward", "backward"]
    assert [(row.subject.n, row.subject.k) for row in rows[3::3]] == [(32, 32), (64, 32), (32, 64)]
    assert {row.subject.candidate for row in rows[3:]} == {"BitLinear", "BitLinear, int8"}
    assert all(row.verified and row.baseline_verified for row in rows)


def test_a_measurement_of_telemetry_is_timed_beside_a_step(run):
    row = run.row(telemetry_case(TrainPlan(32, 1, 2, 8)))
    assert (row.subject.op, row.subject.baseline) == ("telemetry", "one step")
    assert "zero fraction of a naive count" in row.verified
    assert row.ratio.pairs == 12


def test_a_wrong_zero_fraction_is_not_timed(run, monkeypatch):
    monkeypatch.setattr("bitnet_torch.train.telemetry._zeros", lambda *_: 0)
    with pytest.raises(BitNetError, match="telemetry: zero fraction"):
        run.row(telemetry_case(TrainPlan(32, 1, 2, 8)))


def test_a_wrong_gradient_is_not_timed(run, monkeypatch):
    wrong = lambda grad, *rest: 1.01 * ops.ternary_linear_grad_input(grad, *rest)  # noqa: E731
    monkeypatch.setattr("bitnet_torch.nn.bit_linear.ternary_linear_grad_input", wrong)
    _, backward, _ = (make() for make in train_parts.linear_cases(8, 32, 16))
    with pytest.raises(BitNetError, match=r"BitLinear: off by 1\.00e-02 of the norm"):
        run.row(backward)


def test_a_ternary_step_keeps_a_quarter_of_the_inputs_and_their_scales(run):
    plan = TrainPlan(64, 2, 2, 8, intermediate=96)
    row = saved_inputs_row(plan, run.environment)
    # Read by q/k/v, by o, by gate/up and by down.
    widths = 3 * 64 + 96
    assert row.value.median == 2 * plan.tokens * (widths + 4 * 4)
    assert row.baseline.median == 2 * plan.tokens * 4 * widths


@pytest.mark.parametrize("sizes", [(0, 1, 1, 8), (32, 0, 1, 8), (32, 1, 0, 8), (32, 1, 1, 1)])
def test_a_step_without_work_is_refused(sizes):
    with pytest.raises(ConfigurationError):
        TrainPlan(*sizes)


def test_bytes_are_counted_and_peaks_grow(checkpoint):
    rows = {row.subject.op: row for row in memory_rows(checkpoint, describe_environment(), 2)}
    latent, packed = rows["ternary layers, latent"], rows["ternary layers, packed"]
    # 2 bits instead of 32, and what padding and scales add.
    assert 14 < latent.value.median / packed.value.median <= 16
    assert packed.reached.fraction <= 1
    peaks = [rows[f"peak after {what}"].value.median for what in ("import", "load", "generate")]
    assert peaks == sorted(peaks)
    assert peaks[0] > 1 << 20
    private = rows["private beyond PyTorch"]
    assert private.reached.least > packed.value.median
    # Code, tables and buffers: what does not grow with the model.
    assert private.reached.least < private.value.median < private.reached.least + (150 << 20)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="absent does not exist"):
        memory_rows(tmp_path / "absent", describe_environment())


def test_a_child_that_cannot_load_says_why(tmp_path):
    folder = make_checkpoint(tmp_path / "model", PRESETS["tiny"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"could not load and run .*no such file"):
        memory_rows(folder, describe_environment())


def test_a_machine_gives_a_file_name():
    stem = file_stem(replace(describe_environment(), machine="AMD EPYC (x) 7B13, 2 cores"))
    assert stem == "amd-epyc-x-7b13-2-cores"


def test_inputs_are_the_same_in_every_run():
    shape = Shape(2, 8, 12)
    assert same_bits("x", [lambda: make_problem(shape, torch.float32).y], _y(shape))() == "bits"


@functools.cache
def _y(shape):
    return linear_cases.make_problem(shape, torch.float32).y
