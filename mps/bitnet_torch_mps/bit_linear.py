"""Metal launchers of ``bit_linear`` and ``bit_linear_prepacked``.

Contract: bitnet_torch/ops/bit_linear.py. A module on ``mps`` holds its codes in the exchange
layout, which the product reads as it is. The prepacked form trusts the codes, which its module
checked when it took them; so it never waits for the device.
"""

from __future__ import annotations

from torch import Tensor

from bitnet_torch.ops import bit_linear, bit_linear_prepacked
from bitnet_torch.ops.layouts import EXCHANGE, layout_named, register_layout
from bitnet_torch.ops.pack_codes import has_corrupt_code, raise_if_corrupt
from bitnet_torch_mps._device import metal
from bitnet_torch_mps.quantize_activation import launch_quantize_activation
from bitnet_torch_mps.ternary_linear import multiply

register_layout(EXCHANGE, device="mps")


@metal(bit_linear)
def launch_bit_linear(
    x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None = None
) -> Tensor:
    """Quantise and multiply by codes in the exchange layout, which are checked first."""
    raise_if_corrupt(packed, has_corrupt_code(packed))
    return _launch(x, packed, w_scale, N, bias)


@metal(bit_linear_prepacked)
def launch_bit_linear_prepacked(
    x: Tensor,
    prepacked: Tensor,
    layout: str,
    w_scale: Tensor,
    N: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Quantise and multiply by codes in ``layout``."""
    return _launch(x, exchange_codes(prepacked, layout, N, x.shape[-1]), w_scale, N, bias)


def exchange_codes(prepacked: Tensor, layout: str, N: int, K: int) -> Tensor:
    """Return the codes of a layer, in whatever layout it holds them, in the exchange layout."""
    if layout == EXCHANGE.name:
        return EXCHANGE.unpack(prepacked, N, K)
    # Another backend's order, whose code runs on the CPU.
    return layout_named(layout).unpack(prepacked.cpu(), N, K).to(prepacked.device)


def _launch(x: Tensor, packed: Tensor, w_scale: Tensor, N: int, bias: Tensor | None) -> Tensor:
    x_q, x_scale = launch_quantize_activation(x)
    return multiply(x_q, x_scale, packed, w_scale, N, x.dtype, bias)
