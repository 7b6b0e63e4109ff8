"""Declare an operator once; let each backend implement it for one device type.

An op is declared with a schema, a check, a fake and a reference. The reference is
registered for every device, so an op is complete the moment it is declared. A backend
then replaces the reference on its own device type with :func:`implement`. Dispatch is
PyTorch's: nothing here runs per call except the check and a look at the forced backend.

An op has a gradient or refuses one by name. There is no third way: unregistered, autograd
would differentiate the reference's own arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from bitnet_torch.errors import BackendUnavailableError, DeviceError, NotDifferentiableError

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

NAMESPACE = "bitnet_torch"
BACKEND_DEVICE = {"cpu": "cpu", "triton": "cuda", "metal": "mps"}
_LIB = torch.library.Library(NAMESPACE, "DEF")
_DISPATCH_KEY = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS"}
_OPS: dict[str, Op[Any, Any]] = {}
# Of this thread and of what it starts: another thread's choice must not leak into ours.
_forced: ContextVar[str | None] = ContextVar("forced_backend", default=None)


@dataclass(frozen=True)
class Gradient:
    """How to differentiate an op, in PyTorch's own terms.

    Attributes:
        setup: ``(ctx, inputs, output)``; saves what ``backward`` needs.
        backward: ``(ctx, *grads)``; returns one gradient, or None, for each input.
    """

    setup: Callable[[Any, tuple[Any, ...], Any], None]
    backward: Callable[..., Any]


@dataclass(eq=False)
class Op(Generic[P, T]):
    """A declared operator and the backends that implement it.

    Attributes:
        name: Operator name inside the ``bitnet_torch`` namespace.
        check: Raises if the arguments break the op's contract. Never touches data.
        overload: What PyTorch dispatches on.
        gradient: How to differentiate it; None if it refuses.
        impls: Backend name to implementation. ``"reference"`` is always present.
        owner: Device type to the backend that serves it.
    """

    name: str
    check: Callable[..., None]
    overload: Callable[..., Any]
    gradient: Gradient | None
    impls: dict[str, Callable[..., Any]] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the op on the forced backend, or on the one that owns the arguments' device."""
        result: T = self.overload(*args, **kwargs)
        return result

    def served_by(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return what PyTorch dispatches to: ``fn`` after the check, or the forced backend.

        Forcing happens here, below autograd and unseen by the compiler, so a forced backend
        refuses gradients and compiles like any other.
        """
        check = self.check

        def kernel(*args: Any, **kwargs: Any) -> Any:
            forced = _forced.get()
            if forced is not None:
                return self.impls[forced](*args, **kwargs)
            check(*args, **kwargs)
            return fn(*args, **kwargs)

        return kernel


def declare(
    schema: str,
    *,
    check: Callable[..., None],
    fake: Callable[..., Any],
    gradient: Gradient | None = None,
) -> Callable[[Callable[P, T]], Op[P, T]]:
    """Declare an op; the decorated function is its reference implementation.

    Args:
        schema: PyTorch schema string without the namespace.
        check: Same arguments as the op; raises if they break the contract.
        fake: Same arguments; returns empty outputs of the right shape and dtype.
        gradient: How to differentiate the op; None makes ``backward`` refuse by name.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"

    def decorator(reference: Callable[P, T]) -> Op[P, T]:
        _LIB.define(schema)
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        op: Op[P, T] = Op(name, check, overload, gradient)
        torch.library.register_fake(qualified, _checked(op, fake), lib=_LIB)
        op.impls["reference"] = _checked(op, reference)
        _LIB.impl(name, op.served_by(reference), "CompositeExplicitAutograd")
        # Unregistered, autograd would differentiate the reference's own arithmetic: a gradient
        # through the scales only, wrong, and announced by nothing louder than a warning.
        if written := written_arguments(op):
            _LIB.impl(name, _writing(name, overload, written), "Autograd", with_keyset=True)
        else:
            chosen = _refusal(name) if gradient is None else gradient
            torch.library.register_autograd(
                qualified, chosen.backward, setup_context=chosen.setup, lib=_LIB
            )
        _OPS[name] = op
        functools.update_wrapper(op, reference)
        return op

    return decorator


def implement(
    op: Op[P, T], *, backend: str, device: str, also_accepts: tuple[str, ...] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Register the decorated function as ``op`` on ``device``, present or not.

    Args:
        op: A declared operator.
        backend: What :func:`use_backend` takes.
        device: The device type whose tensors PyTorch's dispatch sends here.
        also_accepts: Device types that dispatch does not send here, and that a forced backend
            takes all the same: an interpreter of GPU kernels works on CPU tensors.
    """

    def decorator(kernel: Callable[P, T]) -> Callable[P, T]:
        op.impls[backend] = _on_device((device, *also_accepts), _checked(op, kernel))
        _LIB.impl(op.name, op.served_by(kernel), _DISPATCH_KEY[device])
        op.owner[device] = backend
        logger.debug("%s: %s serves %s", op.name, backend, device)
        return kernel

    return decorator


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op of this thread on backend ``name`` inside the block. For tests and bisection.

    Example::

        with use_backend("reference"):
            y = layer(x)

    Raises:
        BackendUnavailableError: ``name`` is unknown, or some op has no implementation of it.
    """
    if missing := [op.name for op in _OPS.values() if name not in op.impls]:
        raise BackendUnavailableError(
            f"backend {name!r} does not implement {', '.join(missing)}; "
            f"available: {', '.join(available_backends())} (`bitnet doctor` says why)",
            backend=name,
            missing=missing,
        )
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def available_backends() -> list[str]:
    """Return the names of the backends that implement every op."""
    names = {name for op in _OPS.values() for name in op.impls}
    return sorted(n for n in names if all(n in op.impls for op in _OPS.values()))


def forced_backend() -> str | None:
    """Return the backend that :func:`use_backend` has forced, if any."""
    return _forced.get()


def serving_backend(device_type: str) -> str:
    """Return the backend that serves the linear op on ``device_type`` now."""
    return _forced.get() or _OPS["bit_linear"].owner.get(device_type, "reference")


def all_ops() -> dict[str, Op[Any, Any]]:
    """Return every declared op by name."""
    return dict(_OPS)


def written_arguments(op: Op[Any, Any]) -> tuple[int, ...]:
    """Return the positions of the arguments that the op writes into, by its schema."""
    arguments = op.overload._schema.arguments  # type: ignore[attr-defined]
    return tuple(
        i
        for i, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _writing(name: str, overload: Any, written: tuple[int, ...]) -> Callable[..., Any]:
    """Return the autograd kernel of an op that writes into arguments: it refuses a gradient.

    ``register_autograd`` does not take such ops. This does what it does, and counts a version
    up for each tensor written, so that autograd notices if it had been saved.
    """

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, run: Callable[[], Any], *tensors: Any) -> Any:
            return run()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotDifferentiableError(
                f"{name} writes into a cache and has no gradient; train without a cache", op=name
            )

    def kernel(keyset: Any, *args: Any) -> Any:
        def run() -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

        for i in written:
            if args[i] is not None and not args[i].is_inference():
                torch.autograd.graph.increment_version(args[i])
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return Refusing.apply(run, *tensors)  # type: ignore[no-untyped-call]
        return run()

    return kernel


def _refusal(name: str) -> Gradient:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotDifferentiableError(
            f"{name} works on integer codes and has no gradient; train with BitLinear", op=name
        )

    return Gradient(setup, backward)


def _checked(op: Op[P, T], fn: Callable[..., T]) -> Callable[..., T]:
    check = op.check

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        check(*args, **kwargs)
        return fn(*args, **kwargs)

    return call


def _on_device(devices: tuple[str, ...], fn: Callable[..., T]) -> Callable[..., T]:
    """Guard a backend that was forced on tensors of a device it cannot read."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> T:
        for value in _tensors((*args, *kwargs.values())):
            if value.device.type not in devices:
                raise DeviceError(
                    f"this backend runs on {' or '.join(devices)} tensors, got one on "
                    f"{value.device}",
                    wanted=devices,
                    got=str(value.device),
                )
        return fn(*args, **kwargs)

    return call


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments, and those inside their lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
