"""The search for faster launches: what is verified, dropped, kept, and when."""

import functools

import pytest
import torch
from triton.compiler.errors import CompilationError

from bitnet_torch.bench import tune as tuning
from bitnet_torch.bench.tune import Search, duel, problems, tune
from bitnet_torch_triton import policy, ternary_product
from bitnet_torch_triton.tune import candidates as sets
from bitnet_torch_triton.tune.candidates import BUCKETS, Problem
from tests.triton.device import DEVICE, RUNS_KERNELS

pytestmark = RUNS_KERNELS
ONE = Problem(8, 70, 1, 1)


class Clock:
    """A sampler that takes as long as it is told, give or take a thousandth."""

    def __init__(self, seconds):
        self.seconds, self.turn = seconds, 0

    def sample(self):
        self.turn += 1
        return self.seconds * (1 + 1e-3 * (self.turn % 3))


class Misleading(Clock):
    """Takes half as long while it is measured alone."""

    def sample(self):
        return super().sample() * (0.5 if self.turn <= tuning.SAMPLES else 1)


class Gpu:
    """The kernels' device with a clock of its own: block_n says how long a launch takes."""

    def __init__(self, seconds):
        self.device = torch.device(DEVICE)
        self.arch = policy.arch_of(self.device)
        self.settled, self._seconds = 0, seconds
        self.kind, self.clocks = Clock, []

    def copies(self, nbytes):
        return 2

    def sampler(self, calls):
        assert len({call.args[1].data_ptr() for call in calls}) == 2
        self.clocks.append(self.kind(self._seconds[calls[0].args[0].config.block_n]))
        return self.clocks[-1]

    def settle(self):
        self.settled += 1


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Three candidates of one token, of which the interpreter runs each in no time."""
    shipped = ONE.shipped("interpreter")
    configs = [shipped.config, *(type(shipped.config)(block_n=n, block_k=256) for n in (8, 16))]
    rules = [ONE.rule("gemv", config, "interpreter") for config in configs]
    monkeypatch.setattr(tuning, "candidates", lambda problem, arch: rules)


def ran(search):
    tried = list(search.steps())
    assert len(tried) == 3
    return search.found()


def test_the_fastest_that_is_proven_faster_is_found_with_both_times():
    found = ran(Search(ONE, Gpu({32: 4e-6, 8: 3e-6, 16: 2e-6})))
    assert (found.tried, found.dropped) == (3, ())
    assert found.tuned.config.block_n == 16
    assert found.tuned.microseconds == pytest.approx(2, rel=0.01)
    assert found.shipped_microseconds == pytest.approx(4, rel=0.01)


def test_the_shipped_row_stays_where_nothing_is_faster_by_two_per_cent():
    gpu = Gpu({32: 4e-6, 8: 3.95e-6, 16: 5e-6})
    found = ran(Search(ONE, gpu))
    assert (found.tried, found.tuned) == (3, None)
    # Nobody had to fight for it.
    assert [clock.turn for clock in gpu.clocks] == [tuning.SAMPLES] * 3


def test_who_seems_to_be_faster_has_to_prove_it_in_pairs():
    gpu = Gpu({32: 4e-6, 8: 4e-6, 16: 6e-6})
    gpu.kind = Misleading
    search = Search(ONE, gpu)
    steps = search.steps()
    next(steps)
    # The champion has been honest; the challenger is fast only until it meets it.
    search._champion = search._champion._replace(seconds=4e-6)
    search._shipped = search._champion
    next(steps)
    assert search.found().tuned is None
    assert gpu.clocks[1].turn == tuning.SAMPLES + tuning.PAIRS


class Spilled:
    n_spills = 12


def failing(monkeypatch, how):
    """Let launches of block_n = 8 fail."""
    real = ternary_product.launch_rule

    def launch_rule(rule, x, x_scale, pairs, k):
        compiled = real(rule, x, x_scale, pairs, k)
        return how(pairs[0][1]) or compiled if rule.config.block_n == 8 else compiled

    monkeypatch.setattr(ternary_product, "launch_rule", launch_rule)


def raise_(error, y):
    raise error


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda y: Spilled(), "BitNetError: 12 registers are spilled"),
        (lambda y: y.view(torch.int16)[0, 0].bitwise_xor_(1) and None, "this launch is wrong"),
        (
            functools.partial(raise_, CompilationError("src", None, "no")),
            "CompilationError: ",
        ),
        (functools.partial(raise_, RuntimeError("PassManager\n failed")), "PassManager failed"),
    ],
    ids=["spills", "wrong", "does not compile", "pass fails"],
)
def test_what_spills_is_wrong_or_does_not_compile_is_dropped_and_named(monkeypatch, how, reason):
    failing(monkeypatch, how)
    gpu = Gpu({32: 4e-6, 8: 1e-6, 16: 2e-6})
    found = ran(Search(ONE, gpu))
    (dropped,) = found.dropped
    assert dropped.rule.config.block_n == 8
    assert reason in dropped.reason
    assert found.tuned.config.block_n == 16
    assert (found.tried, gpu.settled) == (2, 1)


def test_improvements_are_kept_and_what_was_found_before_an_interruption():
    kept, found, seen = [], [], []

    def advance(problem, done, total):
        seen.append((done, total))
        if len(seen) == 5:
            raise KeyboardInterrupt

    gpu = Gpu({32: 4e-6, 8: 3e-6, 16: 2e-6})
    with pytest.raises(KeyboardInterrupt):
        found.extend(tune([ONE, ONE], gpu, torch.bfloat16, kept.append, advance))
    assert [t.config.block_n for t in kept] == [16, 8]
    assert seen == [(1, 3), (2, 3), (3, 3), (1, 3), (2, 3)]


def test_a_duel_of_equals_has_no_winner():
    assert duel(Clock(1e-6), Clock(1e-6)).verdict == "same"
    assert duel(Clock(1e-6), Clock(2e-6)).verdict == "faster"


def test_problems_are_those_of_the_tokens_asked_for():
    layers = [(7, 5), (9, 5)]
    assert len(problems(layers)) == 2 * len(BUCKETS)
    assert [str(p) for p in problems(layers[:1], [1, 5, 600])] == [
        "7x5, 1 tokens",
        "7x5, 2 to 8 tokens",
        "7x5, 513 and more tokens",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("bucket", range(3))
def test_every_candidate_of_the_device_has_the_bits_of_the_reference(monkeypatch, bucket):
    monkeypatch.setattr(tuning, "candidates", sets.candidates)
    gpu = Gpu(dict.fromkeys((16, 32, 64, 128), 1e-6))
    search = Search(Problem(70, 530, *BUCKETS[bucket]), gpu)
    list(search.steps())
    assert (search.found().tried, search.found().dropped) == (len(search.rules), ())
