"""CPU launcher of :func:`bitnet_torch.ops.attention`.

Queries come as a view of the projection's output and the cache as a view of a larger storage:
the kernel takes them by strides.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bitnet_torch.cpu._library import (
    BAD_VALUE,
    DTYPE_CODE,
    FLOAT,
    INT,
    POINTER,
    SIZE,
    SIZES,
    failure,
    function,
)
from bitnet_torch.ops import attention as op
from bitnet_torch.ops._cache_checks import no_room
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.attention import negative_first, score_factor

_kernel = function(
    "attention",
    *(POINTER, INT, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, SIZES, FLOAT),
    *(SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, POINTER, INT),
)
_Strides = ctypes.c_int64 * 13


@implement(op, backend="cpu", device="cpu")
def _launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
    first: Tensor | None,
) -> Tensor:
    batch, heads, tokens, d = q.shape
    out = torch.empty((batch, tokens, heads, d), dtype=q.dtype)
    q, keys, values = (_dense(x) for x in (q, keys, values))
    scales = None
    if key_scale is not None and value_scale is not None:
        scales = _dense(key_scale), _dense(value_scale)
    first = None if first is None else first.contiguous()
    status = _kernel(
        q.data_ptr(),
        DTYPE_CODE[q.dtype],
        keys.data_ptr(),
        values.data_ptr(),
        scales and scales[0].data_ptr(),
        scales and scales[1].data_ptr(),
        start.data_ptr(),
        None if first is None else first.data_ptr(),
        _strides((q, keys, values), scales),
        score_factor(d) if d else 0.0,
        *(batch, heads, keys.shape[1], tokens, d, keys.shape[2]),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if status == BAD_VALUE:
        if first is not None and bool((first < 0).any()):
            raise negative_first(first)
        raise no_room(start, tokens, keys.shape[2])
    if status:
        raise failure("attention", status)
    return out


def _strides(
    floats: tuple[Tensor, ...], scales: tuple[Tensor, ...] | None
) -> ctypes.Array[ctypes.c_int64]:
    """Return three strides for queries, keys and values, two for each kind of scales."""
    return _Strides(
        *(step for x in floats for step in x.stride()[:3]),
        *((0, 0, 0, 0) if scales is None else (s for x in scales for s in x.stride()[:2])),
    )


def _dense(x: Tensor) -> Tensor:
    """Return ``x``, copied if its last dimension has gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()
