"""The k largest logits of each row and where they stand: the contract and the reference.

Order: a larger value first, NaN before everything; of equals the lower id first, and -0.0 and
+0.0 are equal (each is returned with the sign it has). So the choice has one answer, whatever
the backend, and greedy decoding is ``k = 1``.

==========  ===========  ========  ================================================
argument    shape        dtype     meaning
==========  ===========  ========  ================================================
logits      (..., V)     float32   any strides; V < 2^31
k           --           int       0 <= k <= V
values      (..., k)     float32   the k first in that order, contiguous
ids         (..., k)     int64     their indices in the row, contiguous
==========  ===========  ========  ================================================

There is no gradient.

Source: Fan et al. 2018 (arXiv:1805.04833), section 5.4, for top-k sampling; the order of equals is
that of a stable sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.ops._checks import check_dtype
from bitnet_torch.ops._registry import declare


def check_count(k: int, size: int) -> None:
    """Raise ConfigurationError unless ``k`` of ``size`` values can be taken."""
    if not 0 <= k <= size:
        raise ConfigurationError(f"k must be in [0, {size}], got {k}", k=k, size=size)


def _check(logits: Tensor, k: int) -> None:
    check_dtype("logits", logits, torch.float32)
    if logits.dim() < 1:
        raise ShapeError("logits must have at least one dimension, got a scalar")
    check_count(k, logits.shape[-1])


def _fake(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*logits.shape[:-1], k)
    return (
        torch.empty(shape, dtype=torch.float32, device=logits.device),
        torch.empty(shape, dtype=torch.int64, device=logits.device),
    )


@declare("top_k(Tensor logits, int k) -> (Tensor, Tensor)", check=_check, fake=_fake)
def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of each row, largest first. See the module docstring."""
    # Adding +0.0 makes the two zeros one, also for a sort that compares bits.
    order = (logits + 0.0).sort(dim=-1, descending=True, stable=True).indices
    ids = order[..., :k].contiguous()
    return logits.gather(-1, ids), ids
