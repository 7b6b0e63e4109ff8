"""The training form of a ternary layer: latent float weights, exact integer forward.

``BitLinear`` computes in training the very expression that its packed form computes in
deployment: an integer matrix product and one written-out rounding sequence (see
``ops/ternary_linear.py``). Other projects train on fake-quantised floats, whose sums depend
on the batch and the thread count and differ from their own inference; here
``layer(x)`` and ``layer.packed()(x)`` have the same bits.

The gradient is the straight-through estimator: rounding, clamping and scales count as the
identity, so with G the gradient of y::

    dX = (G * w_scale) @ t            dW = G^T @ (x_q * x_scale)

which are ops, too (``ternary_linear_grad_input``, ``ternary_linear_grad_weight``): their sums do
not depend on the number of threads either. ``backward="int8"`` computes them in integers, faster
and with noise (:mod:`bitnet_torch.nn.int8_backward`).

Between forward and backward a layer keeps ``x_q``, ``x_scale`` and the 2-bit codes: M*K +
4*M + ceil(N/4)*K + 4*numel(w_scale) bytes, against 4*M*K + 4*N*K for fake quantisation. Layers
that read one input (:func:`on_one_input`) keep one ``x_q``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import int8_backward
from bitnet_torch.nn._autocast import autocast_input
from bitnet_torch.nn.code_cache import cached
from bitnet_torch.nn.gathered_weight import GatheredWeight
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.ops._checks import check_features, check_k
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.quantize_pack_weight import quantize_pack_weight
from bitnet_torch.ops.quantize_weight import GRANULARITIES
from bitnet_torch.ops.ternary_linear import ternary_linear
from bitnet_torch.ops.ternary_linear_grad_input import ternary_linear_grad_input
from bitnet_torch.ops.ternary_linear_grad_weight import ternary_linear_grad_weight


class BitLinear(nn.Linear):
    """Drop-in ``nn.Linear`` whose weights act as -1, 0, 1 times one scale.

    Its parameters and ``state_dict`` keys are those of ``nn.Linear``.

    Args:
        in_features: K, at most 131072.
        out_features: N.
        bias: Whether to learn an additive bias. BitNet models have none.
        device: Where the parameters live.
        dtype: Of the latent weights; float32 keeps small updates from being lost.
        granularity: ``"matrix"`` for one scale (BitNet b1.58), ``"row"`` for one per output.
        backward: ``"float"`` for the straight-through gradients, ``"int8"`` for unbiased
            estimates of them in integers, by stochastic rounding.

    Example::

        layer = BitLinear(256, 512)
        y = layer(torch.randn(8, 256))
        torch.equal(y, layer.packed()(x))  # same bits
    """

    granularity: str = "matrix"
    backward: str = "float"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        granularity: str = "matrix",
        backward: str = "float",
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        if granularity not in GRANULARITIES:
            raise ConfigurationError(
                f"granularity must be one of {GRANULARITIES}, got {granularity!r}"
            )
        check_backward(backward)
        check_k("BitLinear", in_features)
        self.granularity, self.backward = granularity, backward

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in the input's dtype, with straight-through gradients.

        Raises:
            ShapeError: The input does not have ``in_features`` columns.
            QuantizationError: A weight is not finite.
        """
        check_features(input, self.in_features)
        return self._multiply(input, *quantize_activation(autocast_input(input.detach())))

    def codes(self) -> tuple[Tensor, Tensor]:
        """Return the weight as it is now as ``packed`` (ceil(N/4), K) and ``w_scale``.

        The forward and the backward pass know the weight by this alone, so a subclass that
        ternarises otherwise overrides it.

        Raises:
            QuantizationError: A weight is not finite.
        """
        if isinstance(self.weight, GatheredWeight):
            return self.weight.packed, self.weight.w_scale
        weight = self.weight.detach()
        if (cache := cached(self, weight)) is not None:
            return cache.codes(self, weight, self.granularity)
        return quantize_pack_weight(weight, self.granularity)

    def _multiply(self, input: Tensor, x_q: Tensor, x_scale: Tensor) -> Tensor:
        """Return the output for ``input``, given also as codes."""
        y: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            autocast_input(input),
            x_q,
            x_scale,
            self.weight,
            self.bias,
            *self.codes(),
            self.backward,
        )
        return y

    @torch.no_grad()
    def packed(self) -> PackedBitLinear:
        """Return the inference form: 2-bit codes, the scale, and a copy of the bias."""
        # Copies: codes may be kept for the next forward pass, and these are the module's own.
        packed, w_scale = (codes.clone() for codes in self.codes())
        bias = None if self.bias is None else self.bias.detach().clone()
        layer = PackedBitLinear(packed, w_scale, self.out_features, bias)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Show sizes as ``nn.Linear`` does, and what is not the default."""
        rows = "" if self.granularity == "matrix" else f", granularity={self.granularity!r}"
        int8 = "" if self.backward == "float" else f", backward={self.backward!r}"
        return super().extra_repr() + rows + int8


def on_one_input(layers: Sequence[BitLinear], input: Tensor) -> list[Tensor]:
    """Return ``[layer(input) for layer in layers]``, with ``input`` quantised and kept once.

    Each layer still has its own backward pass, so gradients have the bits they have alone.

    Raises:
        ShapeError: The input does not have ``in_features`` columns.
        QuantizationError: A weight is not finite.
    """
    for layer in layers:
        check_features(input, layer.in_features)
    codes = quantize_activation(autocast_input(input.detach()))
    # Each casts for itself under autocast: gradients then add up in the dtype of the input.
    return [layer._multiply(input, *codes) for layer in layers]


def check_backward(backward: str) -> None:
    """Raise ConfigurationError unless ``backward`` names a way to compute gradients."""
    if backward not in int8_backward.BACKWARDS:
        raise ConfigurationError(
            f"backward must be one of {int8_backward.BACKWARDS}, got {backward!r}"
        )


class _StraightThrough(torch.autograd.Function):
    """Multiply integers, and pass gradients straight through to input and latent weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_q: Tensor,
        x_scale: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        packed: Tensor,
        w_scale: Tensor,
        backward: str,
    ) -> Tensor:
        ctx.backward = backward
        ctx.save_for_backward(x_q, x_scale, packed, w_scale)
        ctx.x_dtype, ctx.weight_dtype = x.dtype, weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        y: Tensor = ternary_linear(x_q, x_scale, packed, w_scale, weight.shape[0], x.dtype, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_q, x_scale, packed, w_scale = ctx.saved_tensors
        wants_input, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        dx = dw = db = None
        if ctx.backward == "int8":
            noise = int8_backward.noise_like(grad)
            if wants_input:
                dx = int8_backward.grad_input(grad, noise, packed, w_scale, ctx.x_dtype)
            if wants_weight:
                dw = int8_backward.grad_weight(grad, noise, x_q, x_scale, ctx.weight_dtype)
        else:
            if wants_input:
                dx = ternary_linear_grad_input(grad, packed, w_scale, ctx.x_dtype)
            if wants_weight:
                dw = ternary_linear_grad_weight(grad, x_q, x_scale, ctx.weight_dtype)
        if ctx.needs_input_grad[4]:
            # Not -1: an empty tensor has no size to infer it from.
            rows = grad.reshape(x_scale.numel(), grad.shape[-1])
            db = rows.to(torch.float32).sum(0).to(ctx.bias_dtype)
        return dx, None, None, dw, db, None, None, None
