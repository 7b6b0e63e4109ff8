"""Our sampling settings choose from the tokens, with the probabilities, of transformers."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bitnet_torch.generate.sampling import Sampler, Sampling, candidates, penalised
from tests.bits import same_bits

VOCAB = 300
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.8, "top_k": 20},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.7},
]


def theirs(logits, ids, how):
    """What transformers' ``generate`` puts together for these settings, in its order."""
    order = [
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ]
    steps = LogitsProcessorList([make(how[name]) for name, make in order if name in how])
    return steps(ids, logits.clone()).softmax(-1)


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_candidates_and_probabilities_are_those_of_transformers(how):
    for _ in range(25):
        logits, ids = 3 * torch.randn(1, VOCAB), torch.randint(VOCAB, (1, 40))
        settings = Sampling(**{"temperature": 1.0, **how})
        seen = torch.zeros(1, VOCAB, dtype=torch.bool).scatter_(1, ids, True)
        ours = penalised(logits, seen, settings.repetition_penalty)
        kept, probability = candidates(ours[0].double(), settings)
        expected = theirs(logits, ids, how)[0]
        assert sorted(kept.tolist()) == expected.nonzero()[:, 0].tolist()
        # Theirs: an exponential, a sum of VOCAB terms and a division, each step in float32.
        bound = (VOCAB + 8) * 2.0**-24
        ratio = probability / probability.sum() / expected[kept].double()
        assert float((ratio - 1).abs().max()) <= bound


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.1, 3.0])
def test_the_penalty_is_theirs_to_the_bit(penalty):
    logits, ids = 5 * torch.randn(3, VOCAB), torch.randint(VOCAB, (3, 40))
    seen = torch.zeros(3, VOCAB, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    assert same_bits(penalised(logits, seen, penalty), expected)


def test_the_penalty_knows_the_prompt_and_what_was_chosen():
    sampler = Sampler(Sampling(repetition_penalty=2.0), 1)
    sampler.read([[0]])
    logits = torch.tensor([[4.0, 3.0, 2.5, 1.0]])
    assert [int(sampler.choose(logits)) for _ in range(3)] == [1, 2, 0]
