"""The token loop: prefill the prompt in chunks, then one pass after the other.

The cache is claimed at full length before the first token, so a generation that starts has
the memory to end. Everything runs in inference mode, entered anew for each step: the
caller's code between two tokens does not run in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch.generate.head import NextLogits
from bitnet_torch.generate.options import Options
from bitnet_torch.generate.result import TokenLogprob
from bitnet_torch.generate.sampling import Sampler
from bitnet_torch.generate.speculative import Speculation
from bitnet_torch.generate.step_graph import GraphedModel
from bitnet_torch.models import KVCache

# Long enough for full speed, short enough that a chunk's activations stay small.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts, padded on the left.

    Attributes:
        input_ids: (B, T) ids on the model's device.
        mask: (B, T) bool, True for tokens and False for padding; None if there is none.
    """

    input_ids: Tensor
    mask: Tensor | None

    def rows(self) -> list[list[int]]:
        """Return the ids of every sequence, without padding."""
        if self.mask is None:
            return [row.tolist() for row in self.input_ids]
        return [ids[real].tolist() for ids, real in zip(self.input_ids, self.mask, strict=True)]


@dataclass(frozen=True)
class Step:
    """One token for every sequence; one that has ended repeats its last.

    Attributes:
        ids: B ids.
        logprobs: Of each, if asked for.
    """

    ids: list[int]
    logprobs: list[TokenLogprob] | None


class Decoding:
    """Chooses token after token for a batch, until the caller has ended every sequence.

    Args:
        model: The model, in evaluation mode.
        prompt: What to continue; with ``max_new_tokens`` it must fit the context.
        sampler: Chooses the tokens.
        max_new_tokens: Largest number of steps, at least 1.
        options: Cache, speculation, log-probabilities.

    Attributes:
        passes: Forward passes after those of the prompt.
        speculation: The guesses, or None.
    """

    def __init__(
        self,
        model: NextLogits,
        prompt: Prompt,
        sampler: Sampler,
        max_new_tokens: int,
        options: Options,
    ) -> None:
        self._model, self._prompt, self._sampler = model, prompt, sampler
        self._max_new_tokens, self._options = max_new_tokens, options
        self._ids = prompt.input_ids[:, -1].tolist()
        self._ended = [False] * len(self._ids)
        self.passes = 0
        rows = prompt.rows()
        # The tokens of the first sequence, and how many at the end of the cache are mere guesses.
        self._fed, self._guessed = list(rows[0]), 0
        most = options.speculative
        self.speculation = Speculation(rows, most) if most is not None else None
        sampler.read(rows)

    @property
    def replays(self) -> int:
        """Passes that were replayed from a recorded graph."""
        return self._model.replays if isinstance(self._model, GraphedModel) else 0

    def end(self, row: int) -> None:
        """Do not go on with sequence ``row``: it repeats its last token."""
        self._ended[row] = True

    @torch.inference_mode()
    def steps(self) -> Iterator[Step]:
        """Yield the next tokens; between two the caller may ``end`` sequences."""
        batch, tokens = self._prompt.input_ids.shape
        # The last token that is chosen is never fed back.
        length = tokens + self._max_new_tokens - 1
        held_in = "int8" if self._options.cache == "int8" else None
        kept = self._options.prefix_cache
        if kept is None:
            yield from self._choices(self._model.new_cache(batch, length, held_in))
            return
        cache = kept.take(self._model, self._prompt, length, held_in)
        try:
            yield from self._choices(cache)
        finally:
            # Also where the caller stops early: in the midst of guesses, some are not confirmed.
            kept.keep(cache, self._fed[: cache.filled - self._guessed])

    def _choices(self, cache: KVCache) -> Iterator[Step]:
        logits = self._prefill(cache)[:, None]
        guesses: list[list[int]] = [[] for _ in self._ids]
        left = self._max_new_tokens
        while True:
            over = False
            for position in range(logits.shape[1]):
                yield self._choose(logits[:, position])
                left -= 1
                over = all(self._ended) or not left
                if over or position == len(guesses[0]) or not self._agrees(guesses, position):
                    break
                self._guessed -= 1
            if self.speculation is not None:
                self.speculation.learn(len(guesses[0]), len(guesses[0]) - self._guessed)
            if over:
                return
            cache.truncate(cache.filled - self._guessed)
            self._guessed = 0
            guesses = self._guess(left - 1)
            logits = self._next(guesses, cache)
            self._guessed = len(guesses[0])

    def _prefill(self, cache: KVCache) -> Tensor:
        """Fill the cache with the prompt; return the logits (B, vocab) after its last token."""
        ids, mask = self._prompt.input_ids, self._prompt.mask
        tokens = ids.shape[1]
        logits = torch.empty(0, device=ids.device)
        for start in range(cache.filled, tokens, PREFILL_CHUNK):
            piece = slice(start, start + PREFILL_CHUNK)
            logits = self._model.next_logits(
                ids[:, piece], None if mask is None else mask[:, piece], cache
            )
            if self._options.progress is not None:
                self._options.progress(min(piece.stop, tokens), tokens)
        return logits

    def _choose(self, logits: Tensor) -> Step:
        chosen = self._sampler.choose(logits)
        pairs = zip(chosen.tolist(), self._ids, self._ended, strict=True)
        self._ids = [old if ended else new for new, old, ended in pairs]
        self._fed.append(self._ids[0])
        if self.speculation is not None:
            for row in self._going():
                self.speculation.append(row, self._ids[row])
        most = self._options.logprobs
        return Step(self._ids, None if most is None else logprobs_of(logits, self._ids, most))

    def _going(self) -> list[int]:
        return [row for row, ended in enumerate(self._ended) if not ended]

    def _agrees(self, guesses: list[list[int]], position: int) -> bool:
        """Return whether every sequence that goes on has the token that was guessed for it."""
        return all(self._ids[row] == guesses[row][position] for row in self._going())

    def _guess(self, room: int) -> list[list[int]]:
        """Return equally many tokens for every sequence; those that have ended repeat theirs."""
        if self.speculation is None:
            return [[] for _ in self._ids]
        going = self._going()
        proposed = dict(zip(going, self.speculation.propose(going, room), strict=True))
        length = len(proposed[going[0]])
        return [proposed.get(row, [last] * length) for row, last in enumerate(self._ids)]

    def _next(self, guesses: list[list[int]], cache: KVCache) -> Tensor:
        """Return the logits (B, 1 + guesses, vocab) after the last tokens and the guesses."""
        self.passes += 1
        fed = [[last, *more] for last, more in zip(self._ids, guesses, strict=True)]
        ids = torch.tensor(fed, dtype=torch.int64, device=self._prompt.input_ids.device)
        if ids.shape[1] == 1:
            return self._model.next_logits(ids, None, cache)[:, None]
        return self._model.all_logits(ids, cache)


def logprobs_of(logits: Tensor, ids: Sequence[int], most: int) -> list[TokenLogprob]:
    """Return the log-probabilities of ``ids`` (B) and of the ``most`` likely tokens.

    Args:
        logits: (B, vocab) float32; the rest is computed in float64 on the CPU.
        ids: The token of every sequence.
        most: Number of likely tokens; of equals the lowest ids.
    """
    every = logits.to("cpu", torch.float64).log_softmax(-1)
    found = []
    for row, token in zip(every, ids, strict=True):
        order = row.argsort(descending=True, stable=True)[:most].tolist() if most else []
        top = tuple((i, float(row[i])) for i in order)
        found.append(TokenLogprob(token, float(row[token]), top))
    return found
