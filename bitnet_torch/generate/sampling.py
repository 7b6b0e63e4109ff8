"""Choosing the next token from its logits: greedy, or drawn from a seeded generator.

First, the repetition penalty: the logit of every token that stands in the prompt or the new text is
divided by it, or multiplied where it is negative, in float32. Then, with temperature 0, the most
likely token is taken, of equals the one with the lowest id. Otherwise, in this order:

1. top-k keeps the k most likely tokens (of equals, those with the lowest ids);
2. the logits are divided by the temperature and turned into probabilities;
3. top-p keeps the most likely tokens until their probabilities reach p, at least one;
4. min-p drops those less likely than this part of the most likely one;
5. one uniform number picks a token from what is left, in proportion.

Definitions and order are those of transformers' logits processors, which keep all of several equal
tokens at the border of top-k. Steps 1 to 5 are done in float64 on the CPU, from a generator of our
own for every sequence of a batch: sequence i uses seed + i, one number for each token. So a
sequence is drawn the same alone and in any batch that has it at the same index, on every device,
and PyTorch's global generator is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch.errors import GenerationError
from bitnet_torch.ops import top_k

SEEDS = 1 << 63


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, larger is more random.
        top_k: Number of tokens to choose from, or None for all.
        top_p: Probability to choose from, in (0, 1].
        seed: Of the draws; None takes one from the operating system.
        min_p: Part of the largest probability that a token must have, in [0, 1].
        repetition_penalty: Above 0; 1 changes nothing, above 1 repetition is less likely.

    Raises:
        GenerationError: A setting is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _refused("temperature", self.temperature, "a finite number, at least 0")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise _refused("top_k", self.top_k, "an integer, at least 1, or None")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise _refused("top_p", self.top_p, "in (0, 1]")
        if not _is_number(self.min_p) or not 0 <= self.min_p <= 1:
            raise _refused("min_p", self.min_p, "in [0, 1]")
        penalty = self.repetition_penalty
        if not _is_number(penalty) or not 0 < penalty < math.inf:
            raise _refused("repetition_penalty", penalty, "a finite number above 0")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < SEEDS):
            raise _refused("seed", self.seed, "an integer in [0, 2^63), or None")


class Sampler:
    """Chooses tokens for the sequences of one batch; holds their generators.

    Args:
        settings: How to choose.
        batch: Number of sequences.
    """

    def __init__(self, settings: Sampling, batch: int) -> None:
        self.settings = settings
        # (B, vocab) bool: the tokens of the text so far; only a penalty asks for it.
        self._seen: Tensor | None = None
        self._rows: Sequence[Sequence[int]] = [()] * batch
        self._generators = [torch.Generator(device="cpu") for _ in range(batch)]
        first = self._generators[0].seed() % SEEDS if settings.seed is None else settings.seed
        for index, generator in enumerate(self._generators):
            generator.manual_seed((first + index) % SEEDS)

    def read(self, rows: Sequence[Sequence[int]]) -> None:
        """Take note of the tokens of the prompts, for the repetition penalty."""
        self._rows = rows

    def _first_seen(self, logits: Tensor) -> Tensor:
        seen = torch.zeros(logits.shape, dtype=torch.bool, device="cpu")
        for row, ids in zip(seen, self._rows, strict=True):
            row[torch.tensor(ids, dtype=torch.int64, device="cpu")] = True
        return seen

    def choose(self, logits: Tensor) -> Tensor:
        """Return the ids (B,) chosen from ``logits`` (B, vocab), on the logits' device.

        Raises:
            GenerationError: A logit is not finite.
        """
        # Both ends of the range are NaN if any logit is: one pass, and nothing as large allocated.
        if not all(math.isfinite(end) for end in torch.stack(logits.aminmax()).tolist()):
            row, token = (int(i) for i in (~torch.isfinite(logits)).nonzero()[0])
            raise GenerationError(
                f"the logit of token {token} in sequence {row} is {float(logits[row, token])}",
                sequence=row,
                token=token,
            )
        if self.settings.repetition_penalty != 1:
            if self._seen is None:
                self._seen = self._first_seen(logits)
            logits = penalised(logits, self._seen, self.settings.repetition_penalty)
        if self.settings.temperature == 0:
            chosen = top_k(logits.to(torch.float32), 1)[1][:, 0]
        else:
            rows = logits.to("cpu", torch.float64)
            drawn = [self._draw(row, g) for row, g in zip(rows, self._generators, strict=True)]
            chosen = torch.tensor(drawn, device=logits.device)
        if self._seen is not None:
            self._seen.scatter_(1, chosen[:, None].cpu(), True)
        return chosen

    def _draw(self, logits: Tensor, generator: torch.Generator) -> int:
        ids, probabilities = candidates(logits, self.settings)
        edges = probabilities.cumsum(0)
        drawn = torch.rand((), dtype=torch.float64, device="cpu", generator=generator)
        point = drawn * edges[-1]
        index = int(torch.searchsorted(edges, point, right=True))
        # The product may round up to the last edge itself, past which there is no token.
        return int(ids[min(index, ids.numel() - 1)])


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return the logits (B, vocab) with those of ``seen`` tokens (B, vocab) made smaller."""
    # By a tensor: to divide by a number is to multiply by its reciprocal on some devices.
    factor = torch.full_like(logits, penalty)
    less = torch.where(logits < 0, logits * factor, logits / factor)
    return torch.where(seen.to(logits.device), less, logits)


def candidates(logits: Tensor, settings: Sampling) -> tuple[Tensor, Tensor]:
    """Return the ids that may be drawn, most likely first, and their probabilities.

    Args:
        logits: (vocab,) float64.
        settings: With a temperature above 0.

    Returns:
        Ids and probabilities of equal length; the latter sum to at most 1, as those of the
        tokens that top-p dropped are left out.
    """
    ids = _most_likely(logits, settings.top_k)
    # Subtracting first: a tiny temperature would send large logits to infinity.
    scaled = (logits[ids] - logits[ids[0]]) / settings.temperature
    probabilities = scaled.softmax(0)
    if settings.top_p < 1:
        before = probabilities.cumsum(0) - probabilities
        # At rounding's mercy, the first token's own sum before it is not above 0.
        kept = max(1, int((before < settings.top_p).sum()))
        ids, probabilities = ids[:kept], probabilities[:kept]
    if settings.min_p > 0:
        # Largest first, so what is likely enough is a beginning.
        kept = int((probabilities >= settings.min_p * probabilities[0]).sum())
        ids, probabilities = ids[:kept], probabilities[:kept]
    return ids, probabilities


def _most_likely(logits: Tensor, top_k: int | None) -> Tensor:
    """Return the ids of the ``top_k`` largest logits, largest first, equals by id."""
    if top_k is None or top_k >= logits.numel():
        return logits.argsort(descending=True, stable=True)
    threshold = logits.topk(top_k).values[-1]
    # topk does not say which of several equals it takes: take them all, then sort stably.
    near = (logits >= threshold).nonzero()[:, 0]
    return near[logits[near].argsort(descending=True, stable=True)][:top_k]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refused(name: str, value: object, rule: str) -> GenerationError:
    return GenerationError(f"{name} must be {rule}, got {value!r}", argument=name, got=value)
