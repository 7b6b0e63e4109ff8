"""What ``LanguageModel.stream`` returns: an iterator that knows its results afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bitnet_torch.generate.result import GenerationResult
from bitnet_torch.generate.session import Generation


class TextStream(Iterator[str]):
    """Yields pieces of a text, none of them empty, in whole characters."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._pieces = (pieces[0] for _, pieces in generation.steps() if pieces[0])

    def __next__(self) -> str:
        return next(self._pieces)

    def results(self) -> list[GenerationResult]:
        """Return the result of the sequence, as far as it has come, in a list."""
        return self._generation.results()


class IdStream(Iterator[Tensor]):
    """Yields the next id (), or the next ids (B,) of a batch, on the model's device."""

    def __init__(self, generation: Generation, device: torch.device, batched: bool) -> None:
        self._generation = generation
        self._device, self._batched = device, batched
        self._ids = (ids for ids, _ in generation.steps())

    def __next__(self) -> Tensor:
        ids = next(self._ids)
        given = ids if self._batched else ids[0]
        return torch.tensor(given, dtype=torch.int64, device=self._device)

    def results(self) -> list[GenerationResult]:
        """Return the results of the sequences, as far as they have come."""
        return self._generation.results()
