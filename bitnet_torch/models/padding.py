"""What a mask of prompts may look like: tokens in one run, padding before or after it.

A key's distance from its sequence's first key decides the bits of attention, so padding between
tokens has no meaning here and is refused by name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitnet_torch.errors import GenerationError


class Run(NamedTuple):
    """The tokens of one row: indices ``begin`` to ``end - 1``; equal if there are none."""

    begin: int
    end: int


def leading_padding(mask: Tensor) -> Tensor:
    """Return how many positions of ``mask`` (B, T) stand before the first token, (B,) int64."""
    return (mask.cumsum(1) == 0).sum(1)


def runs_of(mask: Tensor) -> list[Run]:
    """Return where the tokens of each row of ``mask`` (B, T) bool stand. Waits for the device.

    A row without tokens has the run (T, T).

    Raises:
        GenerationError: There is padding between two tokens.
    """
    on_host = mask.cpu()
    begin, count = leading_padding(on_host), on_host.sum(1)
    after = torch.where(count > 0, on_host.shape[1] - leading_padding(on_host.flip(1)), begin)
    for row in (after - begin != count).nonzero()[:, 0].tolist()[:1]:
        inside = on_host[row, begin[row] :]
        hole = int(begin[row]) + int((~inside).nonzero()[0])
        raise GenerationError(
            f"attention_mask[{row}, {hole}] is 0 between two tokens; pad on the left or the right",
            row=row,
            position=hole,
        )
    return [Run(*ends) for ends in zip(begin.tolist(), after.tolist(), strict=True)]
