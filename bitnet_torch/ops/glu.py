"""The gate between the two halves of a feed-forward layer: the contract, reference, gradients.

Maths, elementwise, in float32 whatever the input dtype (``fl32`` rounds once to float32,
``rne_dtype`` once to the dtype of g and u)::

    relu2   h = rne_dtype(fl32(fl32(rne_dtype(fl32(g * g))) * u))   where g > 0
            h = NaN                                                 where g is NaN
            h = +0.0                                                elsewhere, whatever u is
    silu    h = rne_dtype(fl32(fl32(rne_dtype(fl32(g / fl32(1 + exp(-g))))) * u))

A dead relu2 neuron is +0.0 also where u is infinite or NaN, so that skipping it is exact.

**relu2** has the same bits on every backend.

**silu** contains an exp, and a backend may use its own if its relative error is at most 2^-22.
Promised are the same bits within one backend for any batch, shape and thread count (which
PyTorch's own silu does not give: a vector and its tail use different code), and between
backends, with h the real value and v the unit roundoff of the dtype (2^-24, 2^-8, 2^-11)::

    |difference| <= |h| * (2^-20 + 4 * v)          among normal numbers

(1 + exp and the quotient: 2^-22 + 2 * 2^-24; the product 2^-24; two roundings to the dtype; and
that for both backends.) The exp of the reference, which the CPU kernels follow to the bit, is
made of single float32 operations::

    v = min(max(-g, -86), 104);  n = rne(v * 1.44269504)
    r = (v - n * 0.693359375) - n * -2.12194440e-4
    exp = ((((((c0 * r + c1) * r + c2) * r + c3) * r + c4) * r + c5) * (r * r) + r + 1) * 2^n

2^n in two factors, ``2^(n >> 1)`` first. As in PyTorch, silu of -inf is NaN.

==========  ===========  =======================  ===================================
argument    shape        dtype                    meaning
==========  ===========  =======================  ===================================
g           any          float32, bfloat16,       gate before its activation, any
                         float16                  strides
u           g's          g's                      the other branch, any strides
activation  --           str                      "relu2" or "silu"
h           g's          g's                      contiguous
==========  ===========  =======================  ===================================

Gradients, in float32, with H that of h and ``s = sigmoid(g)``; 0 where a relu2 neuron is dead::

    relu2   dg = H * 2 * g * u                        du = H * g * g
    silu    dg = H * u * s * (1 + g * (1 - s))        du = H * g * s

Source: So et al. 2021, "Primer" (arXiv:2109.08668) for relu2; Shazeer 2020, "GLU Variants Improve
Transformer" (arXiv:2002.05202); the polynomial of exp is that of the Cephes library's ``expf``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, DTypeError, ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype, check_same_device
from bitnet_torch.ops._exact import exp
from bitnet_torch.ops._registry import Gradient, declare

ACTIVATIONS = ("relu2", "silu")


def check_glu(g: Tensor, u: Tensor, activation: str) -> None:
    """Raise unless ``g`` and ``u`` are two branches that this activation can join."""
    check_dtype("g", g, *FLOATS)
    if u.dtype != g.dtype:
        raise DTypeError(f"u must have the dtype of g, {g.dtype}, got {u.dtype}", argument="u")
    if u.shape != g.shape:
        raise ShapeError(f"u must have the shape of g, {tuple(g.shape)}, got {tuple(u.shape)}")
    if activation not in ACTIVATIONS:
        raise ConfigurationError(
            f"activation must be one of {ACTIVATIONS}, got {activation!r}", activation=activation
        )
    check_same_device(g=g, u=u)


def _fake(g: Tensor, u: Tensor, activation: str) -> Tensor:
    return torch.empty(g.shape, dtype=g.dtype, device=g.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, u, ctx.activation = inputs
    ctx.save_for_backward(g, u)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    g, u = ctx.saved_tensors
    h, gate, up = (t.to(torch.float32) for t in (grad, g, u))
    dg, du = branch_gradients(h, gate, up, ctx.activation)
    return dg.to(g.dtype), du.to(u.dtype), None


def branch_gradients(h: Tensor, g: Tensor, u: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``g`` and ``u`` in their dtype, ``h`` being that of the output."""
    if activation == "silu":
        s = g.sigmoid()
        return h * u * (s * (1 + g * (1 - s))), h * (g * s)
    dead = g <= 0
    return (h * (2 * g * u)).masked_fill(dead, 0.0), (h * (g * g)).masked_fill(dead, 0.0)


@declare(
    "glu(Tensor g, Tensor u, str activation) -> Tensor",
    check=check_glu,
    fake=_fake,
    gradient=Gradient(_setup, _backward),
)
def glu(g: Tensor, u: Tensor, activation: str) -> Tensor:
    """Return ``activation(g) * u``. See the module docstring."""
    gate, up = g.to(torch.float32), u.to(torch.float32)
    acted = _silu(gate) if activation == "silu" else gate * gate
    h = (acted.to(g.dtype).to(torch.float32) * up).to(g.dtype)
    if activation == "relu2":
        h = h.masked_fill(~(gate > 0), 0.0).masked_fill(gate.isnan(), float("nan"))
    return h.contiguous()


def _silu(g: Tensor) -> Tensor:
    return g / (1 + exp((-g).masked_fill(g.isnan(), 0.0)))
