"""One ternary matrix of a GGUF file: its codes in the exchange layout, and its scale.

The TQ types store a float16 scale in every block, which is one number all over the matrix of a
BitNet layer, or one for each row. A matrix with more of them is one that somebody rounded to
ternary blocks without training it so; no layer here computes it, and it is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.file import GgufFile, StoredTensor
from bitnet_torch.io.gguf.ternary_blocks import decode_ternary
from bitnet_torch.io.scales import ExactScale, resolve_scale
from bitnet_torch.ops.pack_codes import pack_codes
from bitnet_torch.ops.quantize_weight import MIN_SCALE

_PIECE = 1 << 20


def read_ternary(
    file: GgufFile, stored: StoredTensor, rows: Tensor | None, exact: ExactScale | None, layer: str
) -> tuple[Tensor, Tensor]:
    """Return the codes (ceil(N/4), K) uint8 and the scale () or (N,) float32 of a matrix.

    Args:
        file: Where it is.
        stored: The matrix (N, K).
        rows: The row of ours that stands in each row of the file; None if the order is ours.
        exact: What the file's metadata says of the layer's scale, if it says anything.
        layer: Name for errors.

    Raises:
        CheckpointError: A scale is not positive and finite or contradicts ``exact``, or there
            are several in a row.
        QuantizationError: A code stands for nothing.
    """
    codes, scales = _read_codes(file, stored)
    if rows is not None:
        codes, scales = _reordered(codes, rows), _reordered(scales, rows)
    found = _one_scale(scales, layer)
    packed = pack_codes(codes)
    if found.numel() > 1:
        if exact is not None:
            raise CheckpointError(f"{layer} has a scale per row, and one exact scale beside them")
        return packed, found
    if not bool(found):
        # A matrix of zeros: its blocks do not say its scale, and any gives the same products.
        found = torch.full_like(found, MIN_SCALE) if exact is None else exact.value
        return packed, resolve_scale(found, False, exact, packed, layer)
    dtype = torch.float32 if stored.kind is types.I2_S else torch.float16
    return packed, resolve_scale(found.to(dtype), False, exact, packed, layer)


def _read_codes(file: GgufFile, stored: StoredTensor) -> tuple[Tensor, Tensor]:
    """Return codes (N, K) int8 and scales (N, blocks in a row), or (1, 1) of I2_S."""
    n, k = stored.shape
    if stored.kind is types.I2_S:
        codes, scale = decode_ternary(stored.kind, file.read(stored))
        return codes.view(n, k), scale.view(1, 1)
    size, step = stored.kind.size(k), max(1, _PIECE // k)
    codes = torch.empty((n, k), dtype=torch.int8, device="cpu")
    scales = torch.empty((n, k // stored.kind.weights), dtype=torch.float32, device="cpu")
    for first in range(0, n, step):
        count = min(step, n - first)
        data = file.read(stored, first * size, count * size)
        part, d = decode_ternary(stored.kind, data)
        # Where the scale is 0 the weights are, whatever their codes.
        blocks = part.view(-1, stored.kind.weights) * (d != 0)[:, None]
        codes[first : first + count] = blocks.view(count, k)
        scales[first : first + count] = d.view(count, -1)
    return codes, scales


def _reordered(stored: Tensor, rows: Tensor) -> Tensor:
    if stored.shape[0] == 1:
        return stored
    out = torch.empty_like(stored)
    out[rows] = stored
    return out


def _one_scale(scales: Tensor, layer: str) -> Tensor:
    """Return the scale () of all blocks, 0 if all are 0; or (N,) if each row has one."""
    if bool((~torch.isfinite(scales) | (scales < 0)).any()):
        raise CheckpointError(f"{layer}: a scale is not a finite positive number")
    largest = scales.amax(1)
    least = torch.where(scales > 0, scales, torch.inf).amin(1)
    used = largest > 0
    if bool((least[used] != largest[used]).any()):
        row = int(((least != largest) & used).nonzero()[0])
        raise CheckpointError(
            f"{layer} has scales {float(least[row])!r} and {float(largest[row])!r} in row {row}; "
            "a ternary layer has one for the matrix or one for each row"
        )
    if not bool(used.any()):
        return torch.zeros((), dtype=torch.float32, device="cpu")
    if bool((largest[used] == largest[used][0]).all()):
        return largest[used][0]
    return torch.where(used, largest, torch.full_like(largest, MIN_SCALE))
