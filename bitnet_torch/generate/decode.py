"""The token loop: prefill the prompt in chunks, then one token at a time.

The cache is claimed at full length before the first token, so a generation that starts has
the memory to end. Everything runs in inference mode, entered anew for each step: the
caller's code between two tokens does not run in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch.generate.head import NextLogits
from bitnet_torch.generate.sampling import Sampler
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


@torch.inference_mode()
def decode(
    model: NextLogits,
    prompt: Prompt,
    sampler: Sampler,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
) -> Iterator[Tensor]:
    """Yield the next ids (B,), on the model's device, until every sequence has ended.

    A sequence that has ended goes on with the id that ended it.

    Args:
        model: The model, in evaluation mode.
        prompt: What to continue; with ``max_new_tokens`` it must fit the context.
        sampler: Chooses the tokens.
        max_new_tokens: Largest number of steps, at least 1.
        eos_ids: Ids that end a sequence.
    """
    batch, tokens = prompt.input_ids.shape
    # The last token that is chosen is never fed back.
    cache = model.new_cache(batch, tokens + max_new_tokens - 1)
    logits = _prefill(model, prompt, cache)
    ends = torch.tensor(eos_ids, dtype=torch.int64, device=logits.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=logits.device)
    ids = prompt.input_ids[:, -1]
    for step in range(max_new_tokens):
        ids = torch.where(ended, ids, sampler.choose(logits))
        ended = ended | torch.isin(ids, ends)
        yield ids
        if bool(ended.all()) or step + 1 == max_new_tokens:
            return
        logits = model.next_logits(ids[:, None], None, cache)


def _prefill(model: NextLogits, prompt: Prompt, cache: KVCache) -> Tensor:
    """Fill the cache with the prompt; return the logits (B, vocab) after its last token."""
    tokens = prompt.input_ids.shape[1]
    logits = torch.empty(0, device=prompt.input_ids.device)
    for start in range(0, tokens, PREFILL_CHUNK):
        piece = slice(start, start + PREFILL_CHUNK)
        mask = None if prompt.mask is None else prompt.mask[:, piece]
        logits = model.next_logits(prompt.input_ids[:, piece], mask, cache)
    return logits
