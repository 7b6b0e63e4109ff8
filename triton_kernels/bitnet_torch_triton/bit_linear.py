"""Triton launchers of ``bit_linear`` and ``bit_linear_prepacked``.

Contract: bitnet_torch/ops/bit_linear.py.

A module on a CUDA device holds its codes in the exchange layout: the product reads it as it
is (ternary_linear.py says why that is no loss), so loading a model repacks nothing and
``state_dict`` copies nothing. The prepacked form trusts the codes, which its module checked
when it took them; so it never waits for the device.
"""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import bit_linear, bit_linear_prepacked
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.layouts import EXCHANGE, layout_named, register_layout
from bitnet_torch.ops.pack_codes import has_corrupt_code, raise_if_corrupt
from bitnet_torch_triton._interpreter import also_accepted
from bitnet_torch_triton.quantize_rows import quantize_rows
from bitnet_torch_triton.ternary_linear import multiply

register_layout(EXCHANGE, device="cuda")


@implement(bit_linear, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch_exchange(
    x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None = None
) -> Tensor:
    raise_if_corrupt(packed, has_corrupt_code(packed))
    return _launch(x, packed, w_scale, N, bias)


@implement(bit_linear_prepacked, backend="triton", device="cuda", also_accepts=also_accepted())
def _launch_prepacked(
    x: Tensor,
    prepacked: Tensor,
    layout: str,
    w_scale: Tensor,
    N: int,
    bias: Tensor | None = None,
) -> Tensor:
    packed = exchange_codes(prepacked, layout, N, x.shape[-1])
    return _launch(x, packed, w_scale, N, bias)


def exchange_codes(prepacked: Tensor, layout: str, N: int, K: int) -> Tensor:
    """Return the codes of a layer, in whatever layout it holds them, in the exchange layout."""
    if layout == EXCHANGE.name:
        return EXCHANGE.unpack(prepacked, N, K)
    # Another backend's order, whose code runs on the CPU.
    return layout_named(layout).unpack(prepacked.cpu(), N, K).to(prepacked.device)


def _launch(x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None) -> Tensor:
    x_q, x_scale = quantize_rows(x)
    return multiply(x_q, x_scale, packed, w_scale, N, x.dtype, bias)
