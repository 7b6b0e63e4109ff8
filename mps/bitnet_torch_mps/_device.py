"""Which tensors the kernels take, and how an op is registered for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bitnet_torch.ops._registry import Op, implement

P = ParamSpec("P")
T = TypeVar("T")

# Set by register() before a launcher is imported.
also_accepts: tuple[str, ...] = ()


def metal(op: Op[P, T]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Register the decorated launcher as ``op`` on ``mps``."""
    return implement(op, backend="metal", device="mps", also_accepts=also_accepts)


def by_reference(op: Op[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Answer a call without elements: Metal has no empty buffers to bind."""
    result: T = op.impls["reference"](*args, **kwargs)
    return result
