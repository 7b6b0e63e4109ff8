"""Triton kernels of ``ternary_linear``. Contract: bitnet_torch/ops/ternary_linear.py.

Both kernels read the exchange layout as it is. A tile of packed bytes [BLOCK_R, BLOCK_K] is
four tiles of codes, of rows r, r + R, r + 2R and r + 3R, and all four meet the same tile of
activations: it is loaded once, and the codes need no rearrangement, neither here nor when a
model is loaded. One token takes a kernel without matrix units, which would be idle in 15 of
16 rows; more tokens take int8 tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_torch.ops import ternary_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.pack_codes import has_corrupt_code, raise_if_corrupt
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton._launch import launch
from bitnet_torch_triton.number import rounded, widened
from bitnet_torch_triton.policy import arch_of, rule_for


@triton.jit
def _ternary_vector_kernel(
    x_ptr,  # (1, K) int8
    x_scale_ptr,  # (1,) float32
    packed_ptr,  # (R, K) uint8
    w_scale_ptr,  # () or (N,) float32
    bias_ptr,  # (N,) float or None
    y_ptr,  # (1, N)
    N,
    K,
    R,
    PER_ROW: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_K)
    acc0 = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.int32)
    acc1 = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.int32)
    acc2 = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.int32)
    acc3 = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.int32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + column
        # Past K the activation is 0, so what the byte says there is no matter.
        x = tl.load(x_ptr + k, mask=k < K, other=0).to(tl.int32)[None, :]
        inside = (r[:, None] < R) & (k[None, :] < K)
        byte = tl.load(packed_ptr + r[:, None] * K + k[None, :], mask=inside, other=0).to(tl.int32)
        acc0 += x * ((byte & 3) - 1)
        acc1 += x * (((byte >> 2) & 3) - 1)
        acc2 += x * (((byte >> 4) & 3) - 1)
        acc3 += x * ((byte >> 6) - 1)
    accs = (acc0, acc1, acc2, acc3)
    x_scale = tl.load(x_scale_ptr)
    for j in tl.static_range(4):
        n = r + j * R
        inside = (r < R) & (n < N)
        acc = tl.sum(accs[j], axis=1)
        w_scale = _weight_scale(w_scale_ptr, n, inside, PER_ROW)
        y = _real(acc, x_scale * w_scale, bias_ptr, n, inside, y_ptr.dtype.element_ty)
        tl.store(y_ptr + n, y, mask=inside)


@triton.jit
def _ternary_tile_kernel(
    x_ptr,  # (M, K) int8
    x_scale_ptr,  # (M,) float32
    packed_ptr,  # (R, K) uint8
    w_scale_ptr,  # () or (N,) float32
    bias_ptr,  # (N,) float or None
    y_ptr,  # (M, N)
    M,
    N,
    K,
    R,
    PER_ROW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = tl.cdiv(M, BLOCK_M)
    m0 = (tl.program_id(0) % across).to(tl.int64) * BLOCK_M
    r0 = (tl.program_id(0) // across).to(tl.int64) * BLOCK_R
    # Offsets inside a tile fit 32 bits, and half the registers, because K does.
    in_m, in_r = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_R)
    m, r = m0 + in_m, r0 + in_r
    column = tl.arange(0, BLOCK_K)
    x_at = in_m[:, None] * K + column[None, :]
    byte_at = in_r[None, :] * K + column[:, None]
    x_ptr += m0 * K
    packed_ptr += r0 * K
    acc0 = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.int32)
    acc1 = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.int32)
    acc2 = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.int32)
    acc3 = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.int32)
    for k0 in range(0, K, BLOCK_K):
        inside = k0 + column < K
        # Past K the activation is 0, so what the byte says there is no matter.
        x = tl.load(x_ptr + k0 + x_at, mask=(m[:, None] < M) & inside[None, :], other=0)
        byte = tl.load(packed_ptr + k0 + byte_at, mask=(r[None, :] < R) & inside[:, None], other=0)
        acc0 = tl.dot(x, (byte & 3).to(tl.int8) - 1, acc0, out_dtype=tl.int32)
        acc1 = tl.dot(x, ((byte >> 2) & 3).to(tl.int8) - 1, acc1, out_dtype=tl.int32)
        acc2 = tl.dot(x, ((byte >> 4) & 3).to(tl.int8) - 1, acc2, out_dtype=tl.int32)
        acc3 = tl.dot(x, (byte >> 6).to(tl.int8) - 1, acc3, out_dtype=tl.int32)
    accs = (acc0, acc1, acc2, acc3)
    x_scale = tl.load(x_scale_ptr + m, mask=m < M, other=0.0)
    for j in tl.static_range(4):
        n = r + j * R
        inside = (r < R) & (n < N)
        w_scale = _weight_scale(w_scale_ptr, n, inside, PER_ROW)
        scale = x_scale[:, None] * (w_scale[None, :] if PER_ROW else w_scale)
        y = _real(accs[j], scale, bias_ptr, n, inside, y_ptr.dtype.element_ty)
        tl.store(y_ptr + m[:, None] * N + n[None, :], y, mask=(m[:, None] < M) & inside[None, :])


@triton.jit
def _weight_scale(w_scale_ptr, n, inside, PER_ROW: tl.constexpr):
    if PER_ROW:
        return tl.load(w_scale_ptr + n, mask=inside, other=0.0)
    else:
        return tl.load(w_scale_ptr)


@triton.jit
def _real(acc, scale, bias_ptr, n, inside, dtype: tl.constexpr):
    """Return the product in real units, rounded, with the bias of the last dimension."""
    y = rounded(acc.to(tl.float32) * scale, dtype)
    if bias_ptr is not None:
        bias = widened(tl.load(bias_ptr + n, mask=inside, other=0.0))
        y = rounded(widened(y) + bias, dtype)
    return y


KERNELS = {"vector": _ternary_vector_kernel, "tile": _ternary_tile_kernel}


@implement(op, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch(
    x_q: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    w_scale: Tensor,
    N: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
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
    if not y.numel():
        return y
    tensors = (
        x_q.contiguous(),
        x_scale.contiguous(),
        packed.contiguous(),
        w_scale.contiguous(),
        None if bias is None else bias.contiguous(),
        y,
    )
    m, r, k = x_scale.numel(), *packed.shape
    per_row = {"PER_ROW": w_scale.numel() > 1}
    rule = rule_for("ternary_linear", arch_of(y.device), m, N, k)
    config, sizes = rule.config, (m, N, k, r) if rule.kernel == "tile" else (N, k, r)
    blocks = {"BLOCK_R": config.block_r, "BLOCK_K": config.block_k}
    programs = triton.cdiv(r, config.block_r)
    if rule.kernel == "tile":
        blocks["BLOCK_M"] = config.block_m
        programs *= triton.cdiv(m, config.block_m)
    kernel = KERNELS[rule.kernel]
    launch(kernel, programs, config, *tensors, *sizes, **per_row, **blocks)
    return y
