"""`bitnet bench tune` from outside: what it lists, keeps, says and refuses without a GPU."""

import json
import sys

import pytest
import torch

from bitnet_torch.cli.main import main

if sys.platform != "linux":
    pytest.skip("Triton exists for Linux only", allow_module_level=True)

from bitnet_torch.bench import tune as tuning
from bitnet_torch_triton.tune import store
from bitnet_torch_triton.tune.candidates import Problem, candidates
from bitnet_torch_triton.tune.store import Environment, Tuned, read

HERE = Environment("Some GPU", "sm_90", "13000", "2.13.0", "3.9.0", "ab")


@pytest.fixture
def bitnet(capfd):
    def call(*arguments):
        capfd.readouterr()
        status = main(["bench", "tune", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return call


def test_a_dry_run_lists_every_candidate_without_a_gpu(bitnet):
    status, out, err = bitnet("--dry-run", "--layer", "64x128", "--tokens", 1, "--tokens", 20)
    lines = out.splitlines()
    counts = [len(candidates(Problem(64, 128, *b), "sm_80")) for b in ((1, 1), (17, 32))]
    assert (status, err) == (0, "")
    assert lines[0] == f"sm_80: {sum(counts)} candidates"
    assert len(lines) == 3 + sum(counts)
    assert "64x128, 17 to 32 tokens" in lines
    status, out, _ = bitnet("--dry-run", "--arch", "gfx942", "--json")
    listed = json.loads(out)
    assert (listed["arch"], len(listed["problems"])) == ("gfx942", 32)
    assert listed["problems"][0]["candidates"][0]["kernel"] == "gemv"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no CUDA device here; --dry-run lists what would be tried"),
        (("--dry-run", "--arch", "sm_75"), "sm_75 is older than sm_80"),
        (("--dry-run", "--arch", "A100"), "must be like sm_90"),
        (("--arch", "sm_90"), "--arch is for --dry-run"),
        (("--dry-run", "--tokens", "0"), "--tokens must be at least 1, got 0"),
    ],
)
def test_an_error_is_one_line(bitnet, monkeypatch, arguments, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = bitnet(*arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert words in err


class FakeGpu:
    device, arch = "cuda:0", "sm_90"


class FakeSearch:
    """Finds the second candidate to be faster, the third to spill; may be interrupted."""

    interrupted_at = None

    def __init__(self, problem, gpu, dtype):
        self.problem, self.rules = problem, candidates(problem, gpu.arch)[:3]

    def steps(self):
        for rule in self.rules:
            yield rule
            if self.problem.least == self.interrupted_at:
                raise KeyboardInterrupt

    def found(self):
        rule = self.rules[1]
        tuned = Tuned(self.problem, rule.kernel, rule.config, 3.0, 4.0)
        dropped = (tuning.Dropped(self.rules[2], "BitNetError: 12 registers are spilled"),)
        return tuning.Found(self.problem, tuned, 2, dropped, 4.0)


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "CudaGpu", FakeGpu)
    monkeypatch.setattr(tuning, "Search", FakeSearch)
    monkeypatch.setattr(store, "environment_of", lambda device: HERE)
    return monkeypatch


ARGUMENTS = ("--layer", "64x128", "--tokens", 1, "--tokens", 2)


def test_what_is_found_is_kept_and_said(bitnet, fakes):
    status, out, err = bitnet(*ARGUMENTS)
    assert (status, err) == (0, "")
    assert "64x128, 1 tokens: 2 timed, 1 dropped; 3.0 us, shipped 4.0 us: gemv " in out
    assert "  dropped gemv " in out
    assert ": BitNetError: 12 registers are spilled" in out
    assert out.endswith(f"2 rules kept in {HERE.file}\n")
    assert [t.problem.least for t in read(HERE.file, HERE)] == [1, 2]
    values = json.loads(bitnet(*ARGUMENTS, "--json")[1])
    assert (values["kept"], values["environment"]["gpu"]) == (2, "Some GPU")
    assert values["problems"][0]["dropped"][0]["reason"].endswith("spilled")


def test_an_interruption_says_what_was_kept(bitnet, fakes):
    fakes.setattr(FakeSearch, "interrupted_at", 2)
    status, _, err = bitnet(*ARGUMENTS)
    assert (status, err) == (130, f"\nbitnet: stopped; 2 rules kept in {HERE.file}\n")
    assert len(read(HERE.file, HERE)) == 2
