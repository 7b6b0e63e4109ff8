"""The language-model head: hidden states to float32 logits over the vocabulary.

A tied head is the embedding matrix; another is a module and is called as one, so that a head
that was made ternary computes as what it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def logits_of(hidden: Tensor, head: nn.Module | None, embedding: Tensor) -> Tensor:
    """Return the logits (..., vocab), float32.

    Args:
        hidden: (..., K), normalised.
        head: Maps (..., K) to (..., vocab); None for a tied head.
        embedding: (vocab, K), the weight of a tied head.
    """
    logits: Tensor = F.linear(hidden, embedding) if head is None else head(hidden)
    return logits.to(torch.float32)
