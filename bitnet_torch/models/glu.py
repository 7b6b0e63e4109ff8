"""The gated activation between the two halves of the feed-forward layer.

``relu2``: ``h = g^2 * u`` where the gate g is above 0, else +0.0 whatever u is (so that a dead
neuron can be skipped); a NaN gate stays NaN. ``silu``: ``h = g * sigmoid(g) * u``. In x's dtype,
rounded after every product.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Return ``activation(gate) * up``, elementwise.

    Args:
        gate: Pre-activation g, any shape.
        up: The other branch u, same shape and dtype.
        activation: ``"relu2"`` or ``"silu"``, as :class:`ModelConfig` has checked.
    """
    if activation == "silu":
        return F.silu(gate) * up
    return (gate.square() * up).masked_fill(gate <= 0, 0.0)
