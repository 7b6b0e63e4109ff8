"""What only a GPU can show beside the kernel tests: the search and the timings, in small."""

import json

import pytest
import torch

from bitnet_torch.bench.device_timing import Cuda, DeviceSampler
from bitnet_torch.cli.main import main

pytestmark = pytest.mark.cuda


def test_a_search_times_what_it_may_and_names_what_it_drops():
    from bitnet_torch.bench.tune import CudaGpu, problems, tune

    kept = []
    wanted = problems([(256, 512)], [1, 8, 64])
    found = list(tune(wanted, CudaGpu(), torch.bfloat16, kept.append, lambda *progress: None))
    assert [one.tuned for one in found if one.tuned] == kept
    for one in found:
        assert one.shipped_microseconds > 0
        assert not any("is wrong" in dropped.reason for dropped in one.dropped)


def test_a_sample_of_a_graph_is_near_that_of_its_calls():
    x = torch.ones(1 << 26, device="cuda")
    calls = [lambda: x.add_(1)] * 3
    calls[0]()
    recorded = DeviceSampler(calls, 1e-3, Cuda())
    assert "graph" in recorded.how
    eager = Cuda().seconds(lambda: [call() for call in calls]) / 3
    # 512 MiB move in each: launching them one by one adds little.
    assert 0.3 < recorded.sample() / eager < 3


def test_what_cannot_be_recorded_is_timed_call_by_call_and_says_so():
    x = torch.ones(8, device="cuda")
    sampler = DeviceSampler([lambda: x.sum().item()], 1e-4, Cuda())
    assert "cannot be recorded" in sampler.how
    assert sampler.sample() > 0


@pytest.mark.timeout(900)
def test_the_ops_are_verified_and_timed_by_events(capfd):
    sizes = ("--layer", "256x256", "--tokens", "1", "--tokens", "64", "--seconds", "0")
    status = main(["bench", "ops", "--device", "cuda", *sizes, "--no-save", "--json"])
    out, err = capfd.readouterr()
    assert status == 0, err
    rows = json.loads(out)["rows"]
    assert {row["environment"]["device"] for row in rows} == {"cuda"}
    assert {row["subject"]["candidate"] for row in rows} == {"triton"}
    assert all("events round" in row["timed"] for row in rows)
    # What a model runs for each token can be recorded.
    steps = [row for row in rows if row["subject"]["op"] in ("attention", "bit_linear_prepacked")]
    assert all("cannot be recorded" not in row["timed"] for row in steps)
