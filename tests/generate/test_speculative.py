"""Guessing changes the number of passes and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bitnet_torch as bt
from bitnet_torch.assets import bundled_model
from bitnet_torch.generate.speculative import Lookup, Speculation
from tests.train.plays import EXCERPT


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 6))
def test_what_followed_the_longest_and_latest_run_is_proposed(ids, limit):
    expected = []
    for n in range(min(6, len(ids)), 1, -1):
        places = [i for i in range(n, len(ids)) if ids[i - n : i] == ids[-n:]]
        if places:
            text = list(ids)
            for i in range(limit):
                text.append(text[places[-1] + i])
            expected = text[len(ids) :]
            break
    assert Lookup(ids).propose(limit) == expected


def test_the_limit_follows_what_holds():
    guesses = Speculation([[1, 2, 3] * 20], 8)

    def proposed():
        return len(guesses.propose([0], 100)[0])

    assert proposed() == 8
    guesses.learn(8, 2)
    assert proposed() == 3
    guesses.learn(3, 3)
    assert proposed() == 6
    guesses.learn(6, 6)
    assert proposed() == 8
    assert len(guesses.propose([0], 5)[0]) == 5
    assert guesses.propose([0], 0) == [[]]
    assert (guesses.proposed, guesses.accepted) == (17, 11)


def test_guessing_pauses_where_nothing_holds_and_longer_every_time():
    guesses = Speculation([[1, 2, 3] * 20], 4)

    def pause():
        """Fail until guessing stops; return the number of tokens until it goes on."""
        while guesses.propose([0], 9)[0]:
            guesses.learn(1, 0)
        silent = 1
        while not guesses.propose([0], 9)[0]:
            silent += 1
        guesses.learn(1, 0)
        return silent

    assert [pause() for _ in range(5)] == [8, 16, 32, 64, 64]
    guesses.learn(1, 1)
    assert pause() == 8


def test_in_a_batch_the_shortest_proposal_counts():
    guesses = Speculation([[1, 2, 1, 2], [5, 6, 7, 8]], 4)
    assert guesses.propose([0, 1], 4) == [[], []]
    assert guesses.propose([0], 4) == [[1, 2, 1, 2]]


def prompts(count):
    """Pieces of the plays of 20 to 120 bytes: beginnings of lines and of words alike."""
    text = EXCERPT.read_text(encoding="utf-8").encode("ascii", "ignore").decode()
    generator = torch.Generator().manual_seed(0)
    at = torch.randint(len(text) - 200, (count,), generator=generator).tolist()
    length = torch.randint(20, 121, (count,), generator=generator).tolist()
    return [text[a : a + n] for a, n in zip(at, length, strict=True)]


def compare(count, tokens, **how):
    """Return the tokens per pass over many prompts, once the texts have been found equal."""
    lm = bt.load(bundled_model())
    made = passes = 0
    for prompt in prompts(count):
        guessed = lm.complete(prompt, tokens, speculative=8, **how)
        plain = lm.complete(prompt, tokens, **how)
        assert guessed.ids == plain.ids
        assert guessed.text == plain.text
        assert plain.tokens_per_pass == 1.0
        assert guessed.passes <= plain.passes
        made += len(guessed.ids) - 1
        passes += guessed.passes
    return made / passes


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_k": 20, "seed": 4}], ids=str)
def test_guessing_gives_the_same_text_in_fewer_passes(how):
    assert compare(12, 40, **how) > 1.02


@pytest.mark.slow
def test_guessing_gives_the_same_tokens_on_two_hundred_prompts():
    rate = compare(200, 64)
    print(f"\ntokens per pass: {rate:.3f}")
    assert rate > 1.0
