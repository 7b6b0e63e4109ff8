"""CPU launcher of :func:`bitnet_torch.ops.rope_kv_write`.

Heads come as views of the projections' outputs and the cache as a view of a larger storage:
the kernel takes all of them by strides.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bitnet_torch.cpu._library import (
    BAD_VALUE,
    DTYPE_CODE,
    INT,
    POINTER,
    SIZE,
    SIZES,
    failure,
    function,
)
from bitnet_torch.ops import rope_kv_write as op
from bitnet_torch.ops._cache_checks import no_room
from bitnet_torch.ops._registry import implement

_kernel = function(
    "rope_kv_write",
    *(POINTER, POINTER, POINTER, INT, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER),
    *(POINTER, SIZES, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE, POINTER, INT),
)
_Strides = ctypes.c_int64 * 24


@implement(op, backend="cpu", device="cpu")
def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
) -> Tensor:
    if keys.stride(-1) != 1 or values.stride(-1) != 1:
        return _through_copies(q, k, v, cos, sin, keys, values, key_scale, value_scale, start)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty(q.shape, dtype=q.dtype)
    status = _kernel(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        DTYPE_CODE[q.dtype],
        cos.data_ptr(),
        sin.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        None if key_scale is None else key_scale.data_ptr(),
        None if value_scale is None else value_scale.data_ptr(),
        start.data_ptr(),
        _strides((q, k, v), cos, (keys, values), (key_scale, value_scale)),
        *(q.shape[0], q.shape[1], k.shape[1], q.shape[2], q.shape[3], keys.shape[2]),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if status == BAD_VALUE:
        raise no_room(start, q.shape[2], keys.shape[2])
    if status:
        raise failure("rope_kv_write", status)
    return y


def _strides(
    heads: tuple[Tensor, ...],
    table: Tensor,
    cache: tuple[Tensor, ...],
    scales: tuple[Tensor | None, ...],
) -> ctypes.Array[ctypes.c_int64]:
    """Return three strides for each argument, in the order of the kernel's comment."""
    sequences_apart = table.stride(0) if table.shape[0] > 1 else 0
    return _Strides(
        *(step for x in heads for step in x.stride()[:3]),
        *(sequences_apart, 0, table.stride(2)),
        *(step for x in cache for step in x.stride()[:3]),
        *(step for x in scales for step in ((0, 0, 0) if x is None else x.stride())),
    )


def _through_copies(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    start: Tensor,
) -> Tensor:
    """Write a cache whose vectors are not dense, which no cache of ours is."""
    dense = keys.contiguous(), values.contiguous()
    y = _launch(q, k, v, cos, sin, *dense, key_scale, value_scale, start)
    keys.copy_(dense[0])
    values.copy_(dense[1])
    return y
