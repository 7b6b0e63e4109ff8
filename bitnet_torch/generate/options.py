"""What generation can be asked for beside the sampling settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from bitnet_torch.errors import GenerationError
from bitnet_torch.generate.prefix_cache import PrefixCache

Progress = Callable[[int, int], None]
CACHES = ("model", "int8")
_MOST_PROPOSED = 64


class More(TypedDict, total=False):
    """Further keyword arguments of every method that generates.

    Attributes:
        min_p: Leave out tokens less likely than this part of the most likely one; 0 for none.
        repetition_penalty: Above 1, tokens that stand in the text already become less likely.
        stop: One text or several: the first to appear ends the sequence and is not part of it.
        logprobs: Record the log-probability of every chosen token, and of so many most likely
            ones (0 for none of them). They are the model's own: of its logits, before any
            setting changes them.
        cache: ``"model"`` keeps keys and values in the model's dtype, ``"int8"`` in half of it.
        speculative: Guess up to so many tokens from the text itself and check them in one pass:
            the same text, in fewer passes where it repeats itself.
        prefix_cache: Where the keys and values are kept for the next generation: what both begin
            with is then read once, as in the turns of a conversation.
        progress: Called with the tokens of the prompt that are done and all there are, after
            every piece of a long prompt.
    """

    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str]
    logprobs: int | None
    cache: str
    speculative: int | None
    prefix_cache: PrefixCache | None
    progress: Progress | None


@dataclass(frozen=True)
class Options:
    """The options that are not about sampling; attributes as in :class:`More`.

    Raises:
        GenerationError: One is out of range.
    """

    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    cache: str = "model"
    speculative: int | None = None
    prefix_cache: PrefixCache | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stops):
            raise _refused("stop", self.stop, "texts that are not empty")
        object.__setattr__(self, "stop", stops)
        if self.logprobs is not None and (type(self.logprobs) is not int or self.logprobs < 0):
            raise _refused("logprobs", self.logprobs, "an integer, at least 0, or None")
        if self.cache not in CACHES:
            raise _refused("cache", self.cache, f"one of {CACHES}")
        k = self.speculative
        if k is not None and (type(k) is not int or not 1 <= k <= _MOST_PROPOSED):
            raise _refused("speculative", k, f"an integer in [1, {_MOST_PROPOSED}], or None")


def _refused(name: str, value: object, rule: str) -> GenerationError:
    return GenerationError(f"{name} must be {rule}, got {value!r}", argument=name, got=value)
