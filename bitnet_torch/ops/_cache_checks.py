"""The argument rules of the ops that work on a static cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import DTypeError, ShapeError
from bitnet_torch.ops._checks import check_dtype


def check_cache(
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Raise unless the four tensors are one cache for activations of ``dtype``."""
    check_dtype("keys", keys, dtype, torch.int8)
    if keys.dim() != 4:
        raise ShapeError(f"keys must be (B, kv_heads, L, D), got {tuple(keys.shape)}")
    if values.dtype != keys.dtype:
        raise DTypeError(f"values must have the dtype of keys, {keys.dtype}, got {values.dtype}")
    if values.shape != keys.shape:
        raise ShapeError(
            f"values must have the shape of keys, {tuple(keys.shape)}, got {tuple(values.shape)}"
        )
    _check_scale("key_scale", key_scale, keys)
    _check_scale("value_scale", value_scale, keys)


def _check_scale(name: str, scale: Tensor | None, keys: Tensor) -> None:
    if (scale is not None) != (keys.dtype == torch.int8):
        given = "none" if scale is None else "one"
        raise DTypeError(f"{name} goes with int8 keys and with no other, got {given}")
    if scale is None:
        return
    check_dtype(name, scale, torch.float32)
    if scale.shape != keys.shape[:-1]:
        raise ShapeError(
            f"{name} must be (B, kv_heads, L) = {tuple(keys.shape[:-1])}, got {tuple(scale.shape)}"
        )


def check_start(start: Tensor) -> None:
    """Raise unless ``start`` is an int64 tensor of shape ()."""
    check_dtype("start", start, torch.int64)
    if start.dim() != 0:
        raise ShapeError(f"start must be a tensor of shape (), got {tuple(start.shape)}")


def no_room(start: Tensor, tokens: int, length: int) -> ShapeError:
    """Return the error for tokens that do not lie inside the cache. Reads ``start``."""
    first = int(start)
    return ShapeError(
        f"start is {first} and there are {tokens} tokens; the cache has keys 0 to {length - 1}",
        start=first,
        tokens=tokens,
        length=length,
    )
