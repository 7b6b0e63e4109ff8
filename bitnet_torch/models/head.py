"""The language-model head: hidden states to float32 logits over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def logits_of(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return the logits (..., vocab), float32, of ``hidden`` (..., K) and ``weight`` (vocab, K)."""
    return F.linear(hidden, weight).to(torch.float32)
