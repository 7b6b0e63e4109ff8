"""CPU launcher of :func:`bitnet_torch.ops.top_k`."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.cpu._library import INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import top_k as op
from bitnet_torch.ops._registry import implement

_kernel = function("top_k", POINTER, SIZE, SIZE, SIZE, POINTER, POINTER, INT)


@implement(op, backend="cpu", device="cpu")
def _launch(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    logits = logits.contiguous()
    shape = (*logits.shape[:-1], k)
    values = torch.empty(shape, dtype=torch.float32, device=logits.device)
    ids = torch.empty(shape, dtype=torch.int64, device=logits.device)
    status = _kernel(
        logits.data_ptr(),
        logits.shape[:-1].numel(),
        logits.shape[-1],
        k,
        values.data_ptr(),
        ids.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        raise failure("top_k", status)
    return values, ids
