"""Rotate queries and keys and put keys and values into a static cache: contract and reference.

By definition its parts: with ``at`` the slots ``start .. start + T - 1`` of the cache::

    q_rotated = rope(q, cos, sin)
    keys[:, :, at], values[:, :, at] = rope(k, cos, sin), v                       float cache
    keys[:, :, at], key_scale[:, :, at] = quantize_activation(rope(k, cos, sin))  int8 cache
    values[:, :, at], value_scale[:, :, at] = quantize_activation(v)

An int8 cache has one scale for each token and head: ``real = code * scale``. A key or value that
cannot be quantised gets the scale NaN. Nothing else of the cache is touched.

===========  =====================  ==================  =====================================
argument     shape                  dtype               meaning
===========  =====================  ==================  =====================================
q            (B, heads, T, D)       float32, bfloat16,  queries, any strides, D even
                                    float16
k            (B, kv_heads, T, D)    q's                 keys, any strides
v            (B, kv_heads, T, D)    q's                 values, any strides
cos          (B or 1, 1, T, D/2)    float32             cosines of the positions
sin          cos's                  float32             their sines
keys         (B, kv_heads, L, D)    q's or int8         written; any strides
values       keys's                 keys's              written; any strides
key_scale    (B, kv_heads, L)       float32             written; with int8 keys only
value_scale  (B, kv_heads, L)       float32             written; with int8 keys only
start        ()                     int64               slot of the first token; a tensor, so
                                                        that a recorded graph can be replayed
q_rotated    (B, heads, T, D)       q's                 contiguous
===========  =====================  ==================  =====================================

``0 <= start`` and ``start + T <= L``, which the caller knows from its own count. The reference
and the CPU look at ``start`` and raise ShapeError before anything is written. A GPU does not wait
for a number: there, what would fall outside is not written.

There is no gradient; training has no cache and calls ``rope``.

Source: the contracts of ``rope`` and ``quantize_activation``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import DTypeError, ShapeError
from bitnet_torch.ops._cache_checks import check_cache, check_start, no_room
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_k, check_same_device
from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.rope import rope


def _check(
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
) -> None:
    _check_heads(q, k, v)
    batch, _, tokens, d = q.shape
    for name, table in (("cos", cos), ("sin", sin)):
        check_dtype(name, table, torch.float32)
        if tuple(table.shape) not in ((1, 1, tokens, d // 2), (batch, 1, tokens, d // 2)):
            raise ShapeError(
                f"{name} must be (B or 1, 1, T, D/2) with (B, T, D) = {(batch, tokens, d)}, got "
                f"{tuple(table.shape)}"
            )
    check_cache(keys, values, key_scale, value_scale, q.dtype)
    if (keys.shape[0], keys.shape[1], keys.shape[3]) != (batch, k.shape[1], d):
        raise ShapeError(
            f"keys must be (B, kv_heads, L, D) with (B, kv_heads, D) = {(batch, k.shape[1], d)}, "
            f"got {tuple(keys.shape)}"
        )
    check_start(start)
    check_same_device(
        **{"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "keys": keys, "values": values},
        **{"key_scale": key_scale, "value_scale": value_scale, "start": start},
    )


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_dtype("q", q, *FLOATS)
    if q.dim() != 4 or q.shape[-1] % 2:
        raise ShapeError(f"q must be (B, heads, T, D) with an even D, got {tuple(q.shape)}")
    check_k("q", q.shape[-1])
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise DTypeError(f"{name} must have the dtype of q, {q.dtype}, got {x.dtype}")
        if x.dim() != 4 or (x.shape[0], *x.shape[2:]) != (q.shape[0], *q.shape[2:]):
            raise ShapeError(
                f"{name} must be (B, kv_heads, T, D) with (B, T, D) = "
                f"{(q.shape[0], *q.shape[2:])}, got {tuple(x.shape)}"
            )
    if k.shape != v.shape:
        raise ShapeError(f"v must have the shape of k, {tuple(k.shape)}, got {tuple(v.shape)}")


def _fake(
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
    return q.new_empty(q.shape)


@declare(
    "rope_kv_write(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) keys, "
    "Tensor(b!) values, Tensor(c!)? key_scale, Tensor(d!)? value_scale, Tensor start) -> Tensor",
    check=_check,
    fake=_fake,
)
def rope_kv_write(
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
    """Rotate, and append to the cache. See the module docstring."""
    tokens, length, begin = q.shape[2], keys.shape[2], int(start)
    if not 0 <= begin <= length - tokens:
        raise no_room(start, tokens, length)
    turn = rope.impls["reference"]
    new = slice(begin, begin + tokens)
    pairs = ((turn(k, cos, sin), keys, key_scale), (v, values, value_scale))
    for x, cache, scale in pairs:
        if scale is None:
            cache[:, :, new] = x
        else:
            cache[:, :, new], scale[:, :, new] = quantize_activation.impls["reference"](x)
    rotated: Tensor = turn(q, cos, sin).contiguous()
    return rotated
