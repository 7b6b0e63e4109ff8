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
    batch, heads, tokens, d = q.shape
    y = torch.empty(q.shape, dtype=q.dtype)
    turn, tokens_apart = (cos.stride(0) if cos.shape[0] > 1 else 0), cos.stride(2)
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
        _Strides(
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *(turn, 0, tokens_apart),
            *keys.stride()[:3],
            *values.stride()[:3],
            *((0, 0, 0) if key_scale is None else key_scale.stride()),
            *((0, 0, 0) if value_scale is None else value_scale.stride()),
        ),
        batch,
        heads,
        k.shape[1],
        tokens,
        d,
        keys.shape[2],
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if status == BAD_VALUE:
        raise no_room(start, tokens, keys.shape[2])
    if status:
        raise failure("rope_kv_write", status)
    return y


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
