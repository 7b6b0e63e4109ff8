"""Cases of the two products of the backward pass, beside the same with PyTorch's float product.

The baseline makes floats of the codes at each call, as the backward pass has to, which knows the
codes since the forward pass only, and multiplies. Both sides return dX in the dtype of the
activations and dW in float32, that of latent weights. All of it is warm: the forward pass has
just been there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch import ops
from bitnet_torch.bench.buffers import WARM
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.linear_cases import UNIT_ROUNDOFF, Shape
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, Check, within

MATMUL = "codes to float32, torch.matmul"


@dataclass(frozen=True)
class Inputs:
    """What a layer of N outputs and K inputs has in its backward pass, for M tokens."""

    grad: Tensor
    packed: Tensor
    w_scale: Tensor
    x_q: Tensor
    x_scale: Tensor


@dataclass(frozen=True)
class Recipe:
    """One product.

    Attributes:
        ours: The op on its inputs.
        theirs: The same by PyTorch.
        factors: The float32 matrices whose product it is.
        read: The tensors that a call must read.
    """

    ours: Callable[[Inputs], Tensor]
    theirs: Callable[[Inputs], Tensor]
    factors: Callable[[Inputs], tuple[Tensor, Tensor]]
    read: Callable[[Inputs], tuple[Tensor, ...]]


def gradient_cases(
    shape: Shape, dtype: torch.dtype, backend: str, device: str = "cpu"
) -> Iterator[tuple[str, MakeCase]]:
    """Yield the cases of both products on one shape, each after the name of its op."""
    for op in RECIPES:
        yield op, functools.partial(_case, op, shape, dtype, backend, device)


def make_inputs(shape: Shape, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Inputs:
    """Draw a normally distributed gradient, and codes."""
    g = torch.Generator().manual_seed(seed)
    t = torch.randint(-1, 2, (shape.n, shape.k), generator=g, dtype=torch.int8)
    x_q, x_scale = ops.quantize_activation(torch.randn(shape.m, shape.k, generator=g))
    grad = torch.randn(shape.m, shape.n, generator=g).to(dtype)
    made = (grad, ops.pack_codes(t), torch.tensor(shape.k**-0.5), x_q, x_scale)
    return Inputs(*(tensor.to(device) for tensor in made))


def _case(op: str, shape: Shape, dtype: torch.dtype, backend: str, device: str) -> Case:
    recipe, inputs = RECIPES[op], make_inputs(shape, dtype, device=device)
    ours, theirs = (functools.partial(f, inputs) for f in (recipe.ours, recipe.theirs))
    subject = Subject(
        suite="ops",
        op=op,
        candidate=backend,
        baseline=MATMUL,
        m=shape.m,
        k=shape.k,
        n=shape.n,
        dtype=str(dtype).removeprefix("torch."),
        buffers=WARM,
    )
    return Case(
        subject,
        Contender(backend, [ours], _near(f"{op} by {backend}", ours, recipe.factors(inputs))),
        Contender(MATMUL, [theirs], _near(MATMUL, theirs, recipe.factors(inputs))),
        nbytes=sum(t.nbytes for t in (*recipe.read(inputs), ours())),
        # Float products, of which the limits of the harness know nothing.
        macs=0,
    )


def _near(name: str, call: Call, factors: tuple[Tensor, Tensor]) -> Check:
    a, b = (factor.to(torch.float64) for factor in factors)
    exact, size, terms = a @ b, a.abs() @ b.abs(), a.shape[1]
    in_float32 = (terms + 1) * 2.0**-24 * size
    bound = in_float32 + UNIT_ROUNDOFF[call().dtype] * (exact.abs() + in_float32)
    return within(name, [call], exact, bound, "(terms + 1) 2^-24 * |a| @ |b| + u * |y|")


def _float_codes(i: Inputs) -> Tensor:
    return ops.unpack_codes(i.packed, i.grad.shape[1]).to(torch.float32)


def _float_input(i: Inputs) -> Tensor:
    return i.x_q.to(torch.float32) * i.x_scale[:, None]


def _float_grad(i: Inputs) -> Tensor:
    return i.grad.to(torch.float32)


RECIPES: dict[str, Recipe] = {
    "ternary_linear_grad_input": Recipe(
        ours=lambda i: ops.ternary_linear_grad_input(i.grad, i.packed, i.w_scale, i.grad.dtype),
        theirs=lambda i: ((_float_grad(i) * i.w_scale) @ _float_codes(i)).to(i.grad.dtype),
        factors=lambda i: (_float_grad(i) * i.w_scale, _float_codes(i)),
        read=lambda i: (i.grad, i.packed),
    ),
    "ternary_linear_grad_weight": Recipe(
        ours=lambda i: ops.ternary_linear_grad_weight(i.grad, i.x_q, i.x_scale, torch.float32),
        theirs=lambda i: _float_grad(i).T @ _float_input(i),
        factors=lambda i: (_float_grad(i).T, _float_input(i)),
        read=lambda i: (i.grad, i.x_q, i.x_scale),
    ),
}
