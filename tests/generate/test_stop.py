import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.generate.stop import StopFilter

SMALL = st.text("ab", max_size=12)


def expected(text, stops):
    """The definition, in one line of thought: cut at the stop that is complete first."""
    for end in range(len(text) + 1):
        for start in range(end):
            if text[start:end] in stops:
                return text[:start], True
    return text, False


@settings(deadline=None, max_examples=400)
@given(SMALL, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_text_ends_before_the_stop_that_is_complete_first_in_whatever_pieces(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    found = StopFilter(stops)
    pieces = [found.push(text[a:b]) for a, b in itertools.pairwise(edges)]
    whole = "".join(pieces) + ("" if found.stopped else found.finish())
    assert (whole, found.stopped) == expected(text, stops)


def test_only_what_could_begin_a_stop_is_held_back():
    found = StopFilter(["<end>"])
    assert [found.push(p) for p in ("a<", "b<e", "n", "d", ">x")] == ["a", "<b", "", "", ""]
    assert found.stopped
    assert found.push("more") == ""


@pytest.mark.parametrize("stops", [[], ["x"]])
def test_text_without_a_stop_passes_whole(stops):
    found = StopFilter(stops)
    assert found.push("abc") == "abc"
    assert found.finish() == ""
