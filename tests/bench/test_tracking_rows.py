"""How a tracked and an untracked step are timed beside each other."""

import pytest

from bitnet_torch.bench.timing import Effort
from bitnet_torch.bench.tracking_rows import _in_turn


def test_pairs_are_complete_and_a_coin_decides_who_of_each_goes_first():
    order = []

    def contender(name, seconds):
        def work():
            order.append(name)
            return seconds

        return work

    series = _in_turn(contender("a", 2.0), contender("b", 1.0), Effort(pairs=40, seconds=600))
    assert series == ([2.0] * 40, [1.0] * 40)
    pairs = list(zip(order[::2], order[1::2], strict=True))
    warm_up = len(pairs) - 40
    assert warm_up > 0
    assert {frozenset(pair) for pair in pairs} == {frozenset("ab")}
    assert 10 < pairs[warm_up:].count(("b", "a")) < 30


@pytest.mark.parametrize("least", [12, 20])
def test_no_pair_is_begun_after_the_time_but_the_least_are_made(least):
    effort = Effort(pairs=99, least_pairs=least, seconds=0)
    series = _in_turn(lambda: 1e6, lambda: None, effort)
    assert [len(times) for times in series] == [least, least]
    # Who does not time himself is timed.
    assert 1e6 not in series[1]
