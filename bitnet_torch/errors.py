"""Every exception this package raises on purpose.

Each class also inherits the builtin a stranger would catch, so ``except ValueError`` keeps
working for people who have never heard of this module. ``kind`` sorts an error for a
machine; ``context`` carries the values that the message speaks of, for a log or a report.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class BitNetError(Exception):
    """Base of all errors raised by bitnet_torch.

    Args:
        message: What is wrong with which argument, file or tensor, with both values.
        context: The same facts by name, for machines.

    Attributes:
        kind: One word that names the family of the error.
        context: The facts given at construction.
    """

    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, /, **context: Any) -> None:
        super().__init__(message)
        self.context: dict[str, Any] = context

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception pickles its args only; DataLoader workers send errors with their context.
        return (type(self), self.args, {"context": self.context})

    def causes(self) -> Iterator[BaseException]:
        """Yield the chain of exceptions that led to this one, nearest first."""
        cause = _cause(self)
        while cause is not None:
            yield cause
            cause = _cause(cause)


def _cause(error: BaseException) -> BaseException | None:
    """Return what a traceback would show: the explicit cause, else the error being handled."""
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


class ShapeError(BitNetError, ValueError):
    """A tensor has a shape the operation cannot accept."""

    kind = "shape"


class DTypeError(BitNetError, TypeError):
    """A tensor has a dtype the operation cannot accept."""

    kind = "dtype"


class DeviceError(BitNetError, RuntimeError):
    """A tensor lies on a device the operation cannot use."""

    kind = "device"


class OutOfMemoryError(BitNetError, MemoryError):
    """Memory was asked for that cannot be had."""

    kind = "memory"


class LeaseError(BitNetError, ValueError):
    """A lease was released twice, given to a pool that is not its own, or used after its end."""

    kind = "lease"


class QuantizationError(BitNetError, ValueError):
    """A value cannot be quantised, or codes are not what the format allows."""

    kind = "quantization"


class CheckpointError(BitNetError, ValueError):
    """A checkpoint is missing, damaged or of a kind that cannot be read."""

    kind = "checkpoint"


class ConfigurationError(BitNetError, ValueError):
    """A setting is unknown, missing or out of range."""

    kind = "configuration"


class DivergenceError(BitNetError, RuntimeError):
    """Training has left the path: a loss or gradient is not finite, or far from those before."""

    kind = "divergence"


class DistributedError(BitNetError, RuntimeError):
    """Another process of a group is lost or does not answer."""

    kind = "distributed"


class GenerationError(BitNetError, ValueError):
    """A prompt or a sampling setting cannot be used."""

    kind = "generation"


class BackendUnavailableError(BitNetError, RuntimeError):
    """A backend was asked for by name and cannot run here."""

    kind = "backend"


class MissingDependencyError(BitNetError, ImportError):
    """An optional library is needed; the message names the extra that installs it."""

    kind = "dependency"


class NotDifferentiableError(BitNetError, RuntimeError):
    """A gradient was asked of an operation that has none."""

    kind = "gradient"
