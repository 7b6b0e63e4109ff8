"""Texts that end a sequence, found wherever the borders of tokens lie."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Lets text through up to the first stop text, which it swallows.

    What could be the beginning of a stop text is held back until it is none. Of several the one
    that is complete first counts, of those the longest; so it does not matter in which pieces
    the text comes.

    Args:
        stops: Not empty each; none let everything through.

    Attributes:
        stopped: Whether a stop text has appeared.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Return what of the text so far is certain not to belong to a stop text."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        kept = len(text) - self._open_length(text)
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held

    def _open_length(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop text."""
        longest = max((len(s) for s in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stops):
                return length
        return 0
