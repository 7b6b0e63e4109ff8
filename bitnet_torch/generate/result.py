"""What a generation gave, for those who ask for more than the text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model held a token, and which it held most likely.

    Attributes:
        id: The token that was chosen.
        logprob: Natural logarithm of its probability, from the model's logits alone.
        top: Ids and log-probabilities of the most likely tokens, the most likely first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class GenerationResult:
    """One sequence that was generated.

    Attributes:
        text: The new text, without the prompt and without what ended it; None where there is
            no tokenizer.
        prompt_ids: The prompt's tokens, without padding.
        ids: The new tokens, the one that ended the sequence included, and those of a stop text.
        finish_reason: ``"eos"``, ``"stop"`` (a stop text) or ``"length"``; ``"cancelled"`` where
            the stream was not read to its end.
        logprobs: One for each of ``ids`` if they were asked for.
        passes: Forward passes after that of the prompt, which gives the first token.
        proposed: Tokens that were guessed.
        accepted: Those of them that the model chose, too.
        recoveries: What was done where memory ran out in this call, in order.
        replays: Those of ``passes`` that were replayed from a graph recorded on the device.
        kernels_compiled: Kernels that had to be compiled first, for the batch as a whole.
        compile_seconds: Time that this took.
    """

    text: str | None
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None
    passes: int
    proposed: int
    accepted: int
    recoveries: tuple[str, ...] = ()
    replays: int = 0
    kernels_compiled: int = 0
    compile_seconds: float = 0.0

    @property
    def tokens_per_pass(self) -> float | None:
        """New tokens after the first by passes after the prompt's: 1 without speculation.

        None where no pass was needed.
        """
        return (len(self.ids) - 1) / self.passes if self.passes else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {**asdict(self), "tokens_per_pass": self.tokens_per_pass}
