"""``bitnet bench ops``: every op over the shapes of a real model.

The shapes are the linear layers of the published 2B-4T model; one token is decoding, many are
a prompt. An op that has no case here is reported by name, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bitnet_torch import ops
from bitnet_torch.bench import (
    cache_cases,
    gradient_cases,
    head_cases,
    linear_cases,
    plain_cases,
    row_cases,
)
from bitnet_torch.bench.buffers import COLD
from bitnet_torch.bench.cases import MakeCase
from bitnet_torch.bench.linear_cases import Shape

# (N, K): attention output and query; query, key and value together; gate or up; down.
LAYERS = ((2560, 2560), (3840, 2560), (6912, 2560), (2560, 6912))
TOKENS = (1, 8, 128, 512)
QUICK_LAYERS = ((2560, 2560), (2560, 6912))
QUICK_TOKENS = (1, 128)


@dataclass(frozen=True)
class OpsPlan:
    """Which cases to measure.

    Attributes:
        layers: (N, K) of the linear layers.
        tokens: Numbers of tokens M.
        dtype: Of the activations.
        temperature: Of the weights, ``"cold"`` or ``"warm"``.
        only: Names of ops; all if empty.
        head: Size of the language-model head, and its tokens; None for no head.
        device: Where everything lies, ``"cpu"`` or ``"cuda"``.
    """

    layers: Sequence[tuple[int, int]] = LAYERS
    tokens: Sequence[int] = TOKENS
    dtype: torch.dtype = torch.bfloat16
    temperature: str = COLD
    only: Sequence[str] = ()
    head: Shape | None = head_cases.HEAD
    device: str = "cpu"

    def wants(self, op: str) -> bool:
        """Return whether an op is to be measured."""
        return not self.only or op in self.only


def covered_ops() -> set[str]:
    """Return the names of the ops that have cases."""
    return {
        *linear_cases.OPS,
        *cache_cases.OPS,
        *head_cases.OPS,
        *gradient_cases.RECIPES,
        *plain_cases.OPS,
        *row_cases.RECIPES,
    }


def uncovered_ops() -> list[str]:
    """Return the names of the declared ops that have none."""
    return sorted(set(ops.all_ops()) - covered_ops())


def cases(plan: OpsPlan) -> Iterator[MakeCase]:
    """Yield the cases of a plan, layer by layer."""
    backend = ops.serving_backend(plan.device)
    where = (backend, plan.device)
    # Several layers have the same inputs; what is done with these has one case.
    widths: set[tuple[int, int]] = set()
    if plan.head is not None:
        yield from _wanted(plan, head_cases.head_cases(backend, plan.head, plan.device))
    for n, k in plan.layers:
        for m in plan.tokens:
            shape = Shape(m, n, k)
            linear = linear_cases.linear_cases(shape, plan.dtype, plan.temperature, *where)
            yield from _wanted(plan, linear)
            yield from _wanted(plan, gradient_cases.gradient_cases(shape, plan.dtype, *where))
            if (m, k) not in widths:
                widths.add((m, k))
                yield from _wanted(plan, plain_cases.activation_cases(shape, plan.dtype, *where))
                yield from _wanted(plan, row_cases.row_cases(shape, plan.dtype, *where))
            if n == k:  # the layer behind attention, as wide as all of its heads
                cached = cache_cases.cache_cases(shape, plan.dtype, plan.temperature, *where)
                yield from _wanted(plan, cached)
        yield from _wanted(plan, plain_cases.weight_cases(Shape(0, n, k), plan.temperature, *where))


def _wanted(plan: OpsPlan, makers: Iterable[tuple[str, MakeCase]]) -> Iterator[MakeCase]:
    yield from (make for op, make in makers if plan.wants(op))
