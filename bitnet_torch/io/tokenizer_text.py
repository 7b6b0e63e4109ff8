"""A tokenizer with a vocabulary: a ``tokenizers.Tokenizer`` and what a model adds to it.

It may come from a ``tokenizer.json`` (:mod:`bitnet_torch.io.tokenizer_files`) or be built from
other tables, such as those of a GGUF file. What the library's post-processor adds to a text (a
bos token, say) is added; the truncation and padding that a file may ask for are not done.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_torch.errors import BitNetError, GenerationError
from bitnet_torch.io.tokenizer import StreamDecoder
from bitnet_torch.io.tokenizer_stream import TextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Vocabulary

    from bitnet_torch.io.chat_template import ChatTemplate

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_MAX_ID = (1 << 32) - 1


@contextlib.contextmanager
def refused_as(error: type[BitNetError], what: str) -> Iterator[None]:
    """Raise what the ``tokenizers`` library raises inside the block as ``error``.

    The library raises nothing more special than Exception, and where its own code fails over a
    file that it took, the PanicException of PyO3, which is no Exception and cannot be named.
    """
    try:
        yield
    except BaseException as caught:
        if not isinstance(caught, Exception) and type(caught).__name__ != "PanicException":
            raise
        raise error(f"{what}: {caught}") from caught


class TextTokenizer:
    """Text to ids and back with the vocabulary of a model.

    Args:
        vocabulary: Of the ``tokenizers`` library. Its truncation and padding are switched off.
        eos_ids: Ids that end a text.
        special_tokens: Text of the special tokens by role, e.g. ``{"bos_token": "<s>"}``.
        chat_template: Turns a conversation into text.
        files: Content by name of further files that a checkpoint folder with this tokenizer
            holds; ``tokenizer.json`` is not among them.
        vocab_size: The largest id plus one, where that is known; otherwise the vocabulary is
            asked, which makes an object of each of its tokens for a moment.

    Attributes:
        vocabulary: As given.
        eos_ids: As given.
        special_tokens: As given.
        chat_template: As given.
        vocab_size: As given, or found; a vocabulary may have gaps.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        eos_ids: Sequence[int] = (),
        special_tokens: Mapping[str, str] | None = None,
        chat_template: ChatTemplate | None = None,
        files: Mapping[str, str] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        vocabulary.no_truncation()
        vocabulary.no_padding()
        self.vocabulary = vocabulary
        self.eos_ids = tuple(eos_ids)
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self._files = dict(files or {})
        if vocab_size is None:
            ids = vocabulary.get_vocab(with_added_tokens=True).values()
            vocab_size = max(ids, default=-1) + 1
        self.vocab_size = vocab_size
        added = vocabulary.get_added_tokens_decoder()
        self._skipped = frozenset(id for id, token in added.items() if token.special)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of ``text``; ``special`` adds what the post-processor adds.

        Raises:
            GenerationError: ``text`` holds a lone surrogate, or cannot be tokenized.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GenerationError(
                f"text holds U+{ord(text[error.start]):04X} at index {error.start}, a lone "
                "surrogate, which no vocabulary has",
                index=error.start,
            ) from error
        with refused_as(GenerationError, "the text cannot be tokenized"):
            ids: list[int] = self.vocabulary.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, without special tokens and ids that stand for nothing.

        Raises:
            GenerationError: An id is negative or beyond 32 bits.
        """
        return self.text_of([i for i in ids if self.has_text(i)])

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder whose pieces, joined, are what ``decode`` gives of all ids."""
        return TextStream(self)

    def has_text(self, token: int) -> bool:
        """Return whether an id stands for a part of the text.

        Raises:
            GenerationError: The id is negative or beyond 32 bits.
        """
        if not 0 <= token <= _MAX_ID:
            raise GenerationError(f"id {token} is not in [0, {_MAX_ID}]", id=token)
        return token not in self._skipped and self.vocabulary.id_to_token(token) is not None

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of ids that all have one."""
        with refused_as(GenerationError, "the ids cannot be decoded"):
            text: str = self.vocabulary.decode(list(ids), skip_special_tokens=False)
        return text

    def files(self) -> dict[str, str | Path]:
        """Return the files, by name, from which a checkpoint folder gives this tokenizer."""
        files: dict[str, str | Path] = {TOKENIZER_FILE: self.vocabulary.to_str(), **self._files}
        if TOKENIZER_CONFIG_FILE not in files:
            files[TOKENIZER_CONFIG_FILE] = json.dumps(self._settings(), indent=2) + "\n"
        return files

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.special_tokens,
        }
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template.to_json()
        return settings
