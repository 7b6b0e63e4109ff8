"""Text to token ids and back: the protocol, and the tokenizer that needs no vocabulary.

Tokenizers with a vocabulary are in :mod:`bitnet_torch.io.tokenizer_text`.

:class:`ByteTokenizer` gives every byte of the UTF-8 text its own id. Any text and any bytes
survive it: a Python string can carry bytes that are not UTF-8 as lone surrogates U+DC80 to
U+DCFF (``surrogateescape``, which is how Python hands over odd command-line arguments and file
names), and these encode to the very bytes they stand for. Other lone surrogates stand for
nothing and are refused. In the other direction a model may emit bytes that are not UTF-8;
text for people shows each as U+FFFD, the replacement character.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from bitnet_torch.errors import GenerationError

if TYPE_CHECKING:
    from bitnet_torch.io.chat_template import ChatTemplate


class StreamDecoder(Protocol):
    """Turns ids into text as they come, holding back what is not a whole character yet."""

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is complete after these further ids; may be empty."""
        ...

    def finish(self) -> str:
        """Return what was held back, as replacement characters."""
        ...


class Tokenizer(Protocol):
    """What generation needs of a tokenizer.

    Attributes:
        vocab_size: Ids lie in [0, vocab_size).
        eos_ids: Ids that end a text; empty if there is none.
        chat_template: Turns a conversation into text; None if the checkpoint has none.
    """

    chat_template: ChatTemplate | None

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text."""
        ...

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of ``text``.

        Args:
            text: Any text.
            special: Whether to add what a text begins and ends with, such as a bos token. A
                rendered conversation has these already.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Return a fresh decoder for one stream of ids."""
        ...


class ByteTokenizer:
    """One id per byte of UTF-8: ids 0 to 255, nothing else.

    Args:
        eos_ids: Bytes that end a text; none by default.
        chat_template: Turns a conversation into text.
    """

    vocab_size = 256

    def __init__(
        self, eos_ids: Sequence[int] = (), chat_template: ChatTemplate | None = None
    ) -> None:
        self.eos_ids = tuple(eos_ids)
        self.chat_template = chat_template

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the bytes of ``text``; there are no special ones to add.

        Raises:
            GenerationError: ``text`` holds a surrogate that stands for no byte.
        """
        try:
            return list(text.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as error:
            raise GenerationError(
                f"text holds U+{ord(text[error.start]):04X} at index {error.start}, a lone "
                "surrogate that stands for no byte",
                index=error.start,
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Raises:
            GenerationError: An id is not a byte.
        """
        return _bytes(ids).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder that never splits a character."""
        return _ByteStream()


class IdsOnly:
    """Stands where a checkpoint names no tokenizer: it refuses text, with the reason.

    Args:
        vocab_size: The model's.
        eos_ids: Ids that end a text, from the checkpoint's configuration.
        reason: Why there is no tokenizer, for the error.
    """

    def __init__(self, vocab_size: int, eos_ids: Sequence[int], reason: str) -> None:
        self.vocab_size = vocab_size
        self.eos_ids = tuple(eos_ids)
        self.reason = reason
        self.chat_template: ChatTemplate | None = None

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Raise GenerationError: there is no tokenizer."""
        raise self._error()

    def decode(self, ids: Sequence[int]) -> str:
        """Raise GenerationError: there is no tokenizer."""
        raise self._error()

    def stream_decoder(self) -> StreamDecoder:
        """Raise GenerationError: there is no tokenizer."""
        raise self._error()

    def _error(self) -> GenerationError:
        return GenerationError(f"{self.reason}; give input_ids instead of text")


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(_bytes(ids))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def _bytes(ids: Sequence[int]) -> bytes:
    for index, value in enumerate(ids):
        if not 0 <= value <= 255:
            raise GenerationError(f"id {value} at index {index} is not a byte", index=index)
    return bytes(ids)
