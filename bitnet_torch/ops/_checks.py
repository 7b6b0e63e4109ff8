"""The argument rules that several ops share, each written once.

Every function raises a :mod:`bitnet_torch.errors` class that names the argument and both
values. None of them reads a tensor's data, so they also run under fake tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, DeviceError, DTypeError, ShapeError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# |acc| <= 128 * K; float32 holds every integer up to 2^24 = 128 * 131072.
MAX_K = 1 << 17


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Raise DTypeError unless ``tensor`` has one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        raise DTypeError(
            f"{name} must be {_names(allowed)}, got {tensor.dtype}",
            argument=name,
            got=str(tensor.dtype),
        )


def check_float_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise DTypeError unless ``dtype`` is an output dtype the kernels can round to."""
    if dtype not in FLOATS:
        raise DTypeError(
            f"{name} must be {_names(FLOATS)}, got {dtype}", argument=name, got=str(dtype)
        )


def check_k(name: str, k: int) -> None:
    """Raise ShapeError if a row is too long for an exact accumulator."""
    if k > MAX_K:
        raise ShapeError(
            f"{name} has K={k} columns; sums are exact up to K={MAX_K}", argument=name, k=k
        )


def check_features(x: Tensor, in_features: int) -> None:
    """Raise ShapeError unless the rows of a layer's input have ``in_features`` elements."""
    if x.dim() < 1 or x.shape[-1] != in_features:
        raise ShapeError(
            f"input must be (..., in_features) = (..., {in_features}), got {tuple(x.shape)}",
            in_features=in_features,
        )


def check_packed(packed: Tensor, k: int, n: int) -> None:
    """Raise unless ``packed`` is uint8 (ceil(N/4), K), the exchange layout."""
    check_dtype("packed", packed, torch.uint8)
    if n < 0:
        raise ConfigurationError(f"N must not be negative, got {n}", N=n)
    if packed.dim() != 2 or packed.shape[0] != -(-n // 4) or packed.shape[1] != k:
        raise ShapeError(
            f"packed must be (ceil(N/4), K) = ({-(-n // 4)}, {k}), got {tuple(packed.shape)}",
            N=n,
            K=k,
        )


def check_weight_scale(w_scale: Tensor, n: int, name: str = "w_scale") -> None:
    """Raise unless ``w_scale`` is float32 and holds one scale, or one per output row."""
    check_dtype(name, w_scale, torch.float32)
    if w_scale.dim() > 1 or (w_scale.dim() == 1 and w_scale.shape[0] not in (1, n)):
        raise ShapeError(
            f"{name} must be a scalar, (1,) or (N,) = ({n},), got {tuple(w_scale.shape)}", N=n
        )


def check_bias(bias: Tensor | None, n: int, name: str = "bias") -> None:
    """Raise unless ``bias`` is absent or a float vector of N."""
    if bias is None:
        return
    check_dtype(name, bias, *FLOATS)
    if bias.dim() != 1 or bias.shape[0] != n:
        raise ShapeError(f"{name} must be (N,) = ({n},), got {tuple(bias.shape)}", N=n)


def check_quantised(x_q: Tensor, x_scale: Tensor) -> None:
    """Raise unless ``x_q`` and ``x_scale`` are int8 rows with one float32 scale each."""
    check_dtype("x_q", x_q, torch.int8)
    check_dtype("x_scale", x_scale, torch.float32)
    if x_q.dim() < 1 or x_scale.shape != x_q.shape[:-1]:
        raise ShapeError(
            f"x_scale must have x_q's leading shape {tuple(x_q.shape[:-1])}, "
            f"got {tuple(x_scale.shape)}"
        )
    check_k("x_q", x_q.shape[-1])


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise DeviceError unless all given tensors lie on one device."""
    first = None
    for tensor in tensors.values():
        if tensor is None:
            continue
        first = tensor.device if first is None else first
        if tensor.device != first:
            placed = {name: t.device for name, t in tensors.items() if t is not None}
            listed = ", ".join(f"{name} on {device}" for name, device in placed.items())
            raise DeviceError(f"tensors must lie on one device, got {listed}")


def wide_float(device: torch.device) -> torch.dtype:
    """Return the widest float that a reference can sum in: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)
