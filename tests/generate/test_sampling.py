import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import GenerationError
from bitnet_torch.generate.sampling import Sampler, Sampling, candidates

# Few distinct values, so that ties are common.
LOGITS = st.lists(st.sampled_from([-3.0, -0.5, 0.0, 0.25, 1.0, 4.0]), min_size=1, max_size=30)


def ranked(logits):
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def probabilities_of(logits, temperature):
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    return [w / sum(weights) for w in weights]


@settings(deadline=None)
@given(LOGITS)
def test_greedy_takes_the_largest_and_of_equals_the_first(logits):
    chosen = Sampler(Sampling(), 1).choose(torch.tensor([logits]))
    assert chosen.tolist() == [ranked(logits)[0]]


@settings(deadline=None)
@given(LOGITS, st.integers(1, 40), st.floats(0.1, 5.0))
def test_top_k_keeps_exactly_the_k_most_likely(logits, k, temperature):
    ids, probabilities = candidates(
        torch.tensor(logits, dtype=torch.float64), Sampling(temperature, top_k=k)
    )
    kept = ranked(logits)[:k]
    assert ids.tolist() == kept
    expected = probabilities_of([logits[i] for i in kept], temperature)
    # One exponential, one division and a sum of at most 30 terms, on either side.
    assert max(abs(p - e) for p, e in zip(probabilities.tolist(), expected, strict=True)) <= (
        80 * 2.0**-53
    )


@settings(deadline=None)
@given(LOGITS, st.floats(0.01, 1.0, exclude_max=True), st.floats(0.1, 5.0))
def test_top_p_keeps_the_fewest_that_reach_p(logits, p, temperature):
    ids, _ = candidates(torch.tensor(logits, dtype=torch.float64), Sampling(temperature, top_p=p))
    order = ranked(logits)
    assert ids.tolist() == order[: len(ids)]
    probability = probabilities_of(logits, temperature)
    slack = 80 * 2.0**-53
    assert sum(probability[i] for i in order[: len(ids)]) >= p - slack
    assert sum(probability[i] for i in order[: len(ids) - 1]) < p + slack


@pytest.mark.parametrize(
    ("count", "p", "kept"), [(2, 0.5, 1), (4, 0.25, 1), (4, 0.5, 2), (8, 0.75, 6)]
)
def test_top_p_stops_where_p_is_reached_exactly(count, p, kept):
    # Equal logits, powers of two: every probability and every sum of them is exact.
    logits = torch.zeros(count, dtype=torch.float64)
    ids, probabilities = candidates(logits, Sampling(1.0, top_p=p))
    assert ids.tolist() == list(range(kept))
    assert probabilities.sum().item() == p


@settings(deadline=None)
@given(LOGITS, st.integers(1, 10), st.floats(0.05, 1.0), st.integers(0, 2**63 - 1))
def test_what_is_drawn_is_a_candidate_and_the_seed_decides(logits, k, p, seed):
    sampling = Sampling(1.0, k, p, seed)
    ids, _ = candidates(torch.tensor(logits, dtype=torch.float64), sampling)
    row = torch.tensor([logits])
    first, second = Sampler(sampling, 1), Sampler(sampling, 1)
    for _ in range(4):
        drawn = first.choose(row)
        assert drawn.item() in ids.tolist()
        assert drawn.item() == second.choose(row).item()


def test_a_sequence_is_drawn_the_same_alone_and_in_a_batch():
    logits = torch.randn(3, 50)
    batch = Sampler(Sampling(1.0, seed=7), 3)
    together = torch.stack([batch.choose(logits) for _ in range(20)])
    for row in range(3):
        sampler = Sampler(Sampling(1.0, seed=7 + row), 1)
        alone = torch.stack([sampler.choose(logits[row : row + 1]) for _ in range(20)])
        assert torch.equal(alone[:, 0], together[:, row])


def test_draws_follow_the_probabilities():
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler, draws = Sampler(Sampling(1.0, seed=0), 1), 4000
    counts = torch.zeros(4)
    for _ in range(draws):
        counts[sampler.choose(probability.log()[None])] += 1
    # Five standard deviations of a binomial count.
    spread = 5 * (draws * probability * (1 - probability)).sqrt()
    assert bool(((counts - draws * probability).abs() <= spread).all())


def test_a_low_temperature_is_greedy_even_where_it_overflows():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (1e-3, 1e-300, 5e-324):
        assert Sampler(Sampling(temperature, seed=1), 1).choose(logits).item() == 1


def test_the_global_generator_is_never_touched():
    before = torch.get_rng_state()
    for seed in (None, 3):
        sampler = Sampler(Sampling(1.0, top_k=5, top_p=0.9, seed=seed), 2)
        sampler.choose(torch.randn(2, 20, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_seed_two_runs_differ():
    logits = torch.zeros(1, 1 << 20)
    drawn = {Sampler(Sampling(1.0), 1).choose(logits).item() for _ in range(3)}
    # Three equal draws of a million have a chance of 1e-12.
    assert len(drawn) > 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_logit_that_is_not_finite_is_named(bad, temperature):
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(GenerationError, match=f"token 3 in sequence 1 is {bad}"):
        Sampler(Sampling(temperature), 2).choose(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("temperature", True),
        ("top_k", 0),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_p", None),
        ("seed", -1),
        ("seed", 1 << 63),
        ("seed", 1.0),
    ],
)
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(GenerationError, match=f"{name} must be .* got {value!r}"):
        Sampling(**{name: value})
