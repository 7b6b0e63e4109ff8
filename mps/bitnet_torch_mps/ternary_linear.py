"""Metal launcher of ``ternary_linear``. Contract: bitnet_torch/ops/ternary_linear.py."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import ternary_linear as op
from bitnet_torch.ops.pack_codes import has_corrupt_code, raise_if_corrupt
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import DTYPES, dtype_code, launch

# The largest number of tokens that ternary_vector is compiled for, and its packed rows; more
# tokens take the tiles.
_VECTORS = ((1, 2), (2, 2), (4, 1), (8, 1))
_SIMDGROUPS = 2
_TILE_M, _TILE_R, _TILE_THREADS = 32, 16, 128


@metal(op)
def launch_ternary_linear(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply by codes in the exchange layout, which are checked first."""
    raise_if_corrupt(packed, has_corrupt_code(packed))
    return multiply(x_q, x_scale, packed, w_scale, N, dtype, bias)


def multiply(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None,
) -> Tensor:
    """Compute the op for codes that are known to be intact, without waiting for the device."""
    y = torch.empty((*x_q.shape[:-1], N), dtype=dtype, device=x_q.device)
    if not x_q.numel() or not y.numel():
        # Nothing to read, so no buffer to bind: sums over no columns, or no outputs.
        return by_reference(op, x_q, x_scale, packed, w_scale, N, dtype, bias)
    x_q, packed, w_scale = x_q.contiguous(), packed.contiguous(), w_scale.contiguous()
    m, r, k = x_scale.numel(), *packed.shape
    aligned = "_aligned" if k % 16 == 0 and _on_16(x_q) and _on_16(packed) else ""
    name, grid, group = _kernel(m, r, aligned)
    launch(
        "ternary_linear",
        f"{name}_{DTYPES[dtype]}",
        x_q,
        x_scale.contiguous(),
        packed,
        w_scale,
        # A buffer that is not read must be bound all the same.
        w_scale if bias is None else bias.contiguous(),
        y,
        [m, N, k, r],
        [int(w_scale.numel() > 1), dtype_code(bias)],
        grid=grid,
        group=group,
    )
    return y


def _kernel(m: int, r: int, aligned: str) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Return the kernel for m tokens and r packed rows, its grid and its threadgroup."""
    for tokens, rows in _VECTORS:
        if m <= tokens:
            groups = -(-r // (rows * _SIMDGROUPS))
            threads = 32 * _SIMDGROUPS
            return f"ternary_vector_{tokens}{aligned}", (groups * threads,), (threads,)
    grid = -(-m // _TILE_M) * _TILE_THREADS, -(-r // _TILE_R)
    return f"ternary_tile{aligned}", grid, (_TILE_THREADS, 1)


def _on_16(tensor: Tensor) -> bool:
    """Return whether a vector of 16 bytes can be loaded from where ``tensor`` begins."""
    # Allocations begin on far larger boundaries.
    return tensor.storage_offset() * tensor.element_size() % 16 == 0
