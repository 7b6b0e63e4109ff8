"""The language-model head: hidden states to float32 logits over the vocabulary.

A tied head is the embedding matrix; another is a module and is called as one, so that a head
that was made ternary computes as what it is. A float head sums in float32, in the one order of
``float_linear``, and its logits are never rounded to a narrower dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitnet_torch.nn import FloatLinear
from bitnet_torch.nn._autocast import autocast_input
from bitnet_torch.ops import float_linear


def logits_of(hidden: Tensor, head: nn.Module | None, embedding: Tensor) -> Tensor:
    """Return the logits (..., vocab), float32.

    Args:
        hidden: (..., K), normalised.
        head: Maps (..., K) to (..., vocab); None for a tied head.
        embedding: (vocab, K), the weight of a tied head.
    """
    logits: Tensor
    if head is None:
        logits = float_linear(autocast_input(hidden), embedding, None, torch.float32)
    elif type(head) is FloatLinear:
        logits = head(hidden, torch.float32)
    else:
        logits = head(hidden)
    return logits.to(torch.float32)
