"""Text from ids as they come, equal to the text of all of them.

The text of a growing list of ids grows at its end, except for a tail that later ids can still
change:

* bytes that begin a character and do not end it, which read as U+FFFD until they do;
* a run of byte-fallback tokens (``<0xE2>``): SentencePiece's decoder takes such a run as a whole,
  and if that is not UTF-8 it shows every byte of it as U+FFFD, also those that were a character
  before the run went on. So a run is held back until another token ends it.

To decode everything at every id would take a time that grows with the square of the length.
A short window is decoded instead: a few ids that were shown already, so that what a decoder does
at the beginning of a text (SentencePiece's strips a space) is not done in the middle of it,
and the new ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_torch.io.tokenizer_text import TextTokenizer

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
# Ids shown already that a window begins with, and the length at which it is cut to them.
_KEPT, _LONGEST = 4, 16


class TextStream:
    """Decodes one stream of ids.

    Args:
        tokenizer: Gives the text of a list of ids.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        # Characters of the window's text that were returned already.
        self._shown = 0

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is certain after these further ids; may be empty."""
        return "".join(map(self._push, ids))

    def finish(self) -> str:
        """Return what was held back."""
        piece = self._tokenizer.text_of(self._window)[self._shown :]
        self._window, self._shown = [], 0
        return piece

    def _push(self, token: int) -> str:
        if not self._tokenizer.has_text(token):
            return ""
        self._window.append(token)
        if self._is_byte(token):
            return ""
        text = self._tokenizer.text_of(self._window)
        certain = text.rstrip(_REPLACEMENT)
        piece = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        if len(certain) == len(text) and len(self._window) >= _LONGEST:
            self._window = self._window[-_KEPT:]
            self._shown = len(self._tokenizer.text_of(self._window))
        return piece

    def _is_byte(self, token: int) -> bool:
        name = self._tokenizer.vocabulary.id_to_token(token)
        return name is not None and _BYTE_TOKEN.fullmatch(name) is not None
