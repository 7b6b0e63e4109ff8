"""Compare what is about to be timed with what it must compute. No comparison, no figure.

A check is a function without arguments that returns, in words, what was compared, and raises
BitNetError at the first difference. Each buffer of a pool is checked, so that no slow or
wrong copy hides among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bitnet_torch.errors import BitNetError

Call = Callable[[], Any]
Check = Callable[[], str]

_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(name: str, calls: Sequence[Call], expected: Tensor | Sequence[Tensor]) -> Check:
    """Return a check that every call gives the bits of ``expected``.

    Args:
        name: Of the contender, for the error.
        calls: What is to be timed.
        expected: A tensor, or one for each output. Any NaN equals any NaN.
    """

    def check() -> str:
        for index, call in enumerate(calls):
            for got, want in _pairs(name, call(), expected):
                if got.dtype != want.dtype or not torch.equal(_bits(got), _bits(want)):
                    raise _mismatch(name, index, got, want, "the same bits")
        return "bits"

    return check


def within(
    name: str, calls: Sequence[Call], expected: Tensor, bound: Tensor | float, why: str
) -> Check:
    """Return a check that every call differs from ``expected`` by no more than ``bound``.

    Args:
        name: Of the contender, for the error.
        calls: What is to be timed.
        expected: The result of another way to compute it.
        bound: Largest difference, for all elements or one for each.
        why: The formula of the bound in words, which goes into the row.
    """

    def check() -> str:
        for index, call in enumerate(calls):
            for got, want in _pairs(name, call(), expected):
                difference = (got.to(torch.float64) - want.to(torch.float64)).abs()
                # `not <=` and not `>`: a NaN must fail.
                if not bool((difference <= bound).all()):
                    raise _mismatch(name, index, got, want, f"within {why}")
        return why

    return check


def _pairs(
    name: str, result: Any, expected: Tensor | Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    wanted = (expected,) if isinstance(expected, Tensor) else tuple(expected)
    shapes = [tuple(t.shape) for t in outputs], [tuple(t.shape) for t in wanted]
    if shapes[0] != shapes[1]:
        raise BitNetError(f"{name} gives shapes {shapes[0]}, expected {shapes[1]}; not timed")
    return list(zip(outputs, wanted, strict=True))


def _bits(x: Tensor) -> Tensor:
    x = x.detach().contiguous()
    if x.is_floating_point():
        x = x.masked_fill(torch.isnan(x), float("nan"))
    return x.view(_INTEGER[x.element_size()])


def _mismatch(name: str, index: int, got: Tensor, want: Tensor, rule: str) -> BitNetError:
    flat, other = got.reshape(-1).cpu(), want.reshape(-1).cpu()
    wrong = (flat.to(torch.float64) != other.to(torch.float64)).nonzero()
    where = int(wrong[0]) if len(wrong) else 0
    return BitNetError(
        f"{name} is wrong and is not timed: with buffer {index}, element {where} of "
        f"{tuple(got.shape)} is {flat[where].item()!r} ({got.dtype}), expected "
        f"{other[where].item()!r} ({want.dtype}), {rule}",
        contender=name,
        buffer=index,
        element=where,
    )
