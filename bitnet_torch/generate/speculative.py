"""Guessing the next tokens from the text itself (prompt-lookup decoding).

Text repeats itself: names, quotations, code. If its last few tokens stood somewhere before, the
guess is that what followed then follows now. The model checks all guesses in one pass and keeps
those that it would have chosen itself, one after the other, so nothing but the number of passes
changes: a pass over k + 1 tokens gives each the bits that it has in a pass of its own.

1. The longest of the last 6, 5, ... 2 tokens that stood before (in the prompt or the output;
   of several places the latest) proposes the tokens that followed there, and where the text ends
   its own, as many as the limit says. In a batch every sequence that goes on must have a
   proposal, or none is made.
2. The limit starts at the number asked for. A pass whose guesses all hold doubles it, up to that
   number; any other sets it to one more than held.
3. Four passes in a row of which no guess holds switch guessing off for 8 tokens, then for 16, at
   most 64 at a time; a guess that holds ends this and starts again from 8.
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST, _SHORTEST = 6, 2
_PATIENCE = 4
_SHORTEST_PAUSE, _LONGEST_PAUSE = 8, 64


class Lookup:
    """Where every run of a few tokens was last followed by something, in one sequence.

    Args:
        ids: The prompt, without padding.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the sequence."""
        # The runs that end here are known once something follows them.
        for run in self._runs():
            self._after[run] = len(self._ids)
        self._ids.append(token)

    def propose(self, limit: int) -> list[int]:
        """Return up to ``limit`` tokens that may follow."""
        for run in self._runs():
            if (start := self._after.get(run)) is not None:
                guess = self._ids[start : start + limit]
                # Where the text ends, the guess itself goes on: a period repeats without end.
                while len(guess) < limit:
                    guess.append(guess[len(guess) - (len(self._ids) - start)])
                return guess
        return []

    def _runs(self) -> list[tuple[int, ...]]:
        longest = min(_LONGEST, len(self._ids))
        return [tuple(self._ids[-n:]) for n in range(longest, _SHORTEST - 1, -1)]


class Speculation:
    """The guesses of a batch, and when to make them.

    Args:
        prompts: The prompts, without padding.
        most: Number of tokens to propose at most.

    Attributes:
        proposed: Tokens proposed so far, for each sequence.
        accepted: Those of them that held.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], most: int) -> None:
        self._lookups = [Lookup(ids) for ids in prompts]
        self._most = self._limit = most
        self._failures, self._pause, self._silent = 0, _SHORTEST_PAUSE, 0
        self.proposed = self.accepted = 0

    def append(self, row: int, token: int) -> None:
        """Add a token that sequence ``row`` has got."""
        self._lookups[row].append(token)

    def propose(self, rows: Sequence[int], room: int) -> list[list[int]]:
        """Return equally many tokens for each of ``rows``, none where it does not pay.

        Args:
            rows: The sequences that go on.
            room: Number of tokens that may be proposed at most.
        """
        if self._silent:
            self._silent -= 1
            return [[] for _ in rows]
        limit = min(self._limit, room)
        guesses = [self._lookups[row].propose(limit) if limit else [] for row in rows]
        shortest = min(map(len, guesses))
        return [guess[:shortest] for guess in guesses]

    def learn(self, proposed: int, held: int) -> None:
        """Take note that ``held`` of ``proposed`` tokens held, in every sequence."""
        self.proposed += proposed
        self.accepted += held
        if not proposed:
            return
        self._limit = min(self._most, 2 * self._limit if held == proposed else held + 1)
        if held:
            self._failures, self._pause = 0, _SHORTEST_PAUSE
            return
        self._failures += 1
        if self._failures == _PATIENCE:
            self._silent, self._failures = self._pause, 0
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
