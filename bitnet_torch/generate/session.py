"""One generation: tokens of a batch turned into texts, each ended by its own end."""

from __future__ import annotations

from collections.abc import Iterator

from bitnet_torch.generate.decode import Decoding, Prompt, Step
from bitnet_torch.generate.result import GenerationResult, TokenLogprob
from bitnet_torch.generate.stop import StopFilter
from bitnet_torch.io.tokenizer import StreamDecoder, Tokenizer
from bitnet_torch.memory import RecoveryStep
from bitnet_torch.memory.recovery import recording
from bitnet_torch.ops.compilation import Compiled, noting


class Sequence:
    """One sequence of a batch as it grows.

    Args:
        prompt_ids: Without padding.
        eos_ids: Ids that end it.
        stops: Texts that end it.
        decoder: Turns its ids into text; None where no text is wanted.
        most: Number of tokens at which it ends.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        eos_ids: tuple[int, ...],
        stops: tuple[str, ...],
        decoder: StreamDecoder | None,
        most: int,
    ) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self._pieces: list[str] = []
        self._eos_ids, self._most = eos_ids, most
        self._decoder, self._filter = decoder, StopFilter(stops)

    def push(self, token: int, logprob: TokenLogprob | None) -> str:
        """Add a token and return the text that is certain now."""
        if self.finish_reason is not None:
            return ""
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        ended = token in self._eos_ids
        piece = "" if ended else self._text_of(token)
        if self._filter.stopped:
            self.finish_reason = "stop"
        elif ended or len(self.ids) == self._most:
            self.finish_reason = "eos" if ended else "length"
            piece += self._rest()
        self._pieces.append(piece)
        return piece

    def result(
        self,
        decoding: Decoding,
        logprobs: bool,
        recoveries: tuple[str, ...],
        compiled: list[Compiled],
    ) -> GenerationResult:
        """Return what became of it."""
        guesses = decoding.speculation
        return GenerationResult(
            None if self._decoder is None else "".join(self._pieces),
            self.prompt_ids,
            tuple(self.ids),
            self.finish_reason or "cancelled",
            tuple(self.logprobs) if logprobs else None,
            decoding.passes,
            guesses.proposed if guesses else 0,
            guesses.accepted if guesses else 0,
            recoveries,
            decoding.replays,
            len(compiled),
            sum(kernel.seconds for kernel in compiled),
        )

    def _text_of(self, token: int) -> str:
        return "" if self._decoder is None else self._filter.push(self._decoder.push([token]))

    def _rest(self) -> str:
        """Return what was held back. It may complete a stop text, which then is the reason."""
        if self._decoder is None:
            return ""
        piece = self._filter.push(self._decoder.finish())
        if self._filter.stopped:
            self.finish_reason = "stop"
        return piece + self._filter.finish()


class Generation:
    """Everything about one call: iterate over it once, then ask for the results.

    Args:
        decoding: Chooses the tokens.
        prompt: What is continued.
        tokenizer: Knows the ends, and turns ids into text.
        stops: Texts that end a sequence.
        most: Number of new tokens at most.
        text: Whether texts are wanted.
    """

    def __init__(
        self,
        decoding: Decoding,
        prompt: Prompt,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
        most: int,
        text: bool,
    ) -> None:
        self._decoding = decoding
        self.sequences = [
            Sequence(
                ids,
                tokenizer.eos_ids,
                stops,
                tokenizer.stream_decoder() if text else None,
                most,
            )
            for ids in prompt.rows()
        ]
        self._logprobs = False
        self._recoveries: list[RecoveryStep] = []
        self._compiled: list[Compiled] = []

    def steps(self) -> Iterator[tuple[list[int], list[str]]]:
        """Yield the next ids of all sequences and the texts that are certain with them."""
        decoded = self._decoding.steps()
        while True:
            # Not round the yield: the caller's work is not this generation's.
            with recording(self._recoveries), noting(self._compiled):
                step = next(decoded, None)
            if step is None:
                return
            yield step.ids, self._take(step)

    def finish(self) -> list[GenerationResult]:
        """Do what is left to do, and return the results."""
        for _ in self.steps():
            pass
        return self.results()

    def results(self) -> list[GenerationResult]:
        """Return one result for every sequence, as far as it has come."""
        steps = tuple(map(str, self._recoveries))
        return [
            s.result(self._decoding, self._logprobs, steps, self._compiled) for s in self.sequences
        ]

    def _take(self, step: Step) -> list[str]:
        self._logprobs = step.logprobs is not None
        pieces = []
        for row, sequence in enumerate(self.sequences):
            logprob = None if step.logprobs is None else step.logprobs[row]
            pieces.append(sequence.push(step.ids[row], logprob))
            if sequence.finish_reason is not None:
                self._decoding.end(row)
        return pieces
