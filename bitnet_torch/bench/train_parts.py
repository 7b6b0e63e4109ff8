"""Forward and backward of one linear layer in training, BitLinear beside nn.Linear.

Also the integer gradients of ``backward="int8"``, beside the same baseline.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bitnet_torch.bench.buffers import WARM
from bitnet_torch.bench.cases import Case, MakeCase
from bitnet_torch.bench.row import Subject
from bitnet_torch.bench.timing import Contender
from bitnet_torch.bench.verify import Call, Check, same_bits
from bitnet_torch.errors import BitNetError
from bitnet_torch.nn import BitLinear
from bitnet_torch.ops import quantize_activation, quantize_weight

# Of a gradient from the exact product, by the norms. The coin of int8 is off by half a quantum of
# 127 to the largest of a row, which is some four deviations.
TOLERANCE = {"float": 1e-5, "int8": 0.05}

Gradients = Callable[[], tuple[Tensor, ...]]


def linear_cases(m: int, n: int, k: int) -> Iterator[MakeCase]:
    """Yield forward, backward and integer backward of a layer (N, K) for M tokens."""
    yield functools.partial(_forward, m, n, k)
    for backward in TOLERANCE:
        yield functools.partial(_backward, m, n, k, backward)


def _forward(m: int, n: int, k: int) -> Case:
    layer, plain, x, _ = _problem(m, n, k)
    calls: list[Call] = [functools.partial(form, x) for form in (layer, plain)]
    return Case(
        _subject("linear forward", "BitLinear", m, n, k),
        Contender("BitLinear", calls[:1], same_bits("BitLinear", calls[:1], layer.packed()(x))),
        Contender(
            "nn.Linear",
            calls[1:],
            _near("nn.Linear", calls[1:], ((x @ plain.weight.T).detach().double(),), 1e-5),
        ),
        nbytes=layer.weight.nbytes + x.nbytes + 4 * m * n,
    )


def _backward(m: int, n: int, k: int, backward: str) -> Case:
    layer, plain, x, grad = _problem(m, n, k)
    layer.backward = backward
    t, w_scale = (c.double() for c in quantize_weight(layer.weight.detach()))
    x_q, x_scale = (c.double() for c in quantize_activation(x.detach()))
    g = grad.double()
    exact = (g * w_scale) @ t, g.T @ (x_q * x_scale[:, None])
    floats = g @ plain.weight.detach().double(), g.T @ x.detach().double()
    name = "BitLinear" if backward == "float" else f"BitLinear, {backward}"
    ours, theirs = ([_gradients(form, x, grad)] for form in (layer, plain))
    return Case(
        _subject("linear backward", name, m, n, k),
        Contender(name, ours, _near(name, ours, exact, TOLERANCE[backward])),
        Contender("nn.Linear", theirs, _near("nn.Linear", theirs, floats, 1e-5)),
        nbytes=sum(t.nbytes for t in (x, grad, layer.weight)) * 2,
    )


def _gradients(layer: nn.Linear, x: Tensor, grad: Tensor) -> Call:
    y = layer(x)
    return lambda: torch.autograd.grad(y, (x, layer.weight), grad, retain_graph=True)


def _problem(m: int, n: int, k: int) -> tuple[BitLinear, nn.Linear, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    layer, plain = BitLinear(k, n), nn.Linear(k, n, bias=False)
    with torch.no_grad():
        for form in (layer, plain):
            form.weight.copy_(torch.randn(n, k, generator=g) * k**-0.5)
    x = torch.randn(m, k, generator=g, requires_grad=True)
    return layer, plain, x, torch.randn(m, n, generator=g)


def _subject(op: str, candidate: str, m: int, n: int, k: int) -> Subject:
    return Subject("train", op, candidate, "nn.Linear", m, k, n, "float32", WARM)


def _near(name: str, calls: list[Call], expected: tuple[Tensor, ...], tolerance: float) -> Check:
    def check() -> str:
        for call in calls:
            made = call()
            results = made if isinstance(made, tuple) else (made,)
            for got, want in zip(results, expected, strict=True):
                error = float((got.detach().double() - want).norm() / want.norm())
                if not error <= tolerance:
                    raise BitNetError(f"{name}: off by {error:.2e} of the norm, not {tolerance}")
        return f"within {tolerance} of the norm of the exact product"

    return check
