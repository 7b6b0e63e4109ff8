"""Triton launchers of ``bit_linear`` and ``bit_linear_prepacked``.

Contract: bitnet_torch/ops/bit_linear.py.

A module on a CUDA device holds its codes in layout planar64. The prepacked form trusts the
codes, which its module checked when it took them; so it never waits for the device.
"""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import bit_linear, bit_linear_prepacked
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.layouts import layout_named
from bitnet_torch_triton import planar64
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.quantize_rows import quantize_rows
from bitnet_torch_triton.ternary_product import Matrix, multiply


@implement(bit_linear, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch_exchange(
    x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None = None
) -> Tensor:
    return _launch(x, planar64.prepack(packed, N), w_scale, N, bias)


@implement(bit_linear_prepacked, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch_prepacked(
    x: Tensor,
    prepacked: Tensor,
    layout: str,
    w_scale: Tensor,
    N: int,
    bias: Tensor | None = None,
) -> Tensor:
    return _launch(x, planar_codes(prepacked, layout, N, x.shape[-1]), w_scale, N, bias)


def planar_codes(prepacked: Tensor, layout: str, N: int, K: int) -> Tensor:
    """Return the codes of a layer, in whatever layout it holds them, in planar64."""
    if layout == planar64.NAME:
        return prepacked.contiguous()
    # Another backend's order, whose code runs on the CPU.
    packed = layout_named(layout).unpack(prepacked.cpu(), N, K)
    return planar64.prepack(packed.to(prepacked.device), N)


def _launch(x: Tensor, codes: Tensor, w_scale: Tensor, N: int, bias: Tensor | None) -> Tensor:
    x_q, x_scale = quantize_rows(x)
    (y,) = multiply(x_q, x_scale, [Matrix(codes, w_scale, N, bias)], x.dtype)
    return y
