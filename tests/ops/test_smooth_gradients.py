"""The formulas of our gradients, in float64, against finite differences (gradcheck).

The ops themselves take no float64, so each formula is put behind the real function that it is the
gradient of; that the ops apply it in float32 is tested op by op.
"""

import pytest
import torch

from bitnet_torch.ops.glu import branch_gradients
from bitnet_torch.ops.rms_norm import input_gradient, weight_gradient
from bitnet_torch.ops.rope import rope

EPS = 1e-5


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, u, activation):
        ctx.save_for_backward(g, u)
        ctx.activation = activation
        return (g.relu().square() if activation == "relu2" else g * g.sigmoid()) * u

    @staticmethod
    def backward(ctx, grad):
        return *branch_gradients(grad, *ctx.saved_tensors, ctx.activation), None


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        r = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        ctx.save_for_backward(x * r, r, weight)
        return weight * (x * r)

    @staticmethod
    def backward(ctx, grad):
        n, r, weight = ctx.saved_tensors
        return input_gradient(grad, n, r, weight), weight_gradient(grad, n)


class Ternary(torch.autograd.Function):
    """What the straight-through estimator is the gradient of: the product of the real values."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        w_scale = w.abs().max()
        return (grad * w_scale) @ (w / w_scale), grad.T @ x


def wide(*shape, away_from_zero=False):
    x = torch.randn(*shape, dtype=torch.float64)
    # relu2 has no second derivative at 0, which finite differences would straddle.
    x = torch.where(x.abs() < 0.05, x + 0.1, x) if away_from_zero else x
    return x.requires_grad_()


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_gate(activation):
    arguments = (wide(3, 7, away_from_zero=True), wide(3, 7))
    assert torch.autograd.gradcheck(lambda g, u: Gate.apply(g, u, activation), arguments)


@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 1), (5,)])
def test_norm(shape):
    assert torch.autograd.gradcheck(Norm.apply, (wide(*shape), wide(shape[-1])))


def test_product_of_real_values():
    t = torch.tensor([[1.0, -1, 0, 1], [0, 0, -1, 1], [1, 1, 1, -1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(Ternary.apply, (wide(5, 4), (0.7 * t).requires_grad_()))


def test_rotation_is_transposed_by_the_opposite_angle():
    """The op is linear: <rope(x), y> = <x, rope'(y)> to the rounding of 2 D float32 products."""
    x, y = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    angles = torch.rand(5, 8) * 10
    forward = (rope(x, angles.cos(), angles.sin()).double() * y).sum()
    back = (x.double() * rope(y, angles.cos(), -angles.sin())).sum()
    assert abs(float(forward - back)) <= 3 * 2.0**-24 * 2 * float(x.norm() * y.norm())
