"""What is done when memory runs out: a written policy, one step after the other, none silent.

====================  =============================================================================
step                  what it does
====================  =============================================================================
``trim``              cached blocks of every pool go back to PyTorch
``empty cache``       Python's garbage is collected, PyTorch's cache goes back to the device
``smaller pieces``    the work is done in pieces of half the size: of a prompt, or of a batch
``offload``           the work is done on the CPU, where the caller offers and the policy allows it
====================  =============================================================================

A policy takes them in this order, halving as long as it can; each is logged as a warning, and kept
in ``pool.recoveries`` of the pool of the process and in the result of the work.
``pool.recovery_policy`` may be a :class:`RecoveryPolicy` with other settings, or any function.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory.native_counts import empty_native_cache

if TYPE_CHECKING:
    from bitnet_torch.memory.pool import HybridMemoryPool

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIM, EMPTY_CACHE, SMALLER, OFFLOAD = "trim", "empty cache", "smaller pieces", "offload"
# The CPU allocator of PyTorch has no error class of its own.
_CPU_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried")


@dataclass(frozen=True)
class RecoveryStep:
    """A step that was taken.

    Attributes:
        action: Its name in the table above.
        work: What had run out of memory.
        error: Its error, in one line.
        detail: What the step did.
    """

    action: str
    work: str
    error: str
    detail: str

    def __str__(self) -> str:
        return f"{self.work} ran out of memory ({self.error}); {self.action}: {self.detail}"


@dataclass(frozen=True)
class Trouble:
    """What a policy decides on.

    Attributes:
        work: What has run out of memory.
        steps: Steps that were taken for it already.
        pieces: Size of its pieces.
        least: Size that they must keep.
        can_offload: Whether it can be done on the CPU.
    """

    work: str
    steps: tuple[RecoveryStep, ...]
    pieces: int
    least: int
    can_offload: bool


Policy = Callable[[Trouble], str | None]


@dataclass(frozen=True)
class RecoveryPolicy:
    """Takes the steps of the table in their order, those that are allowed.

    Attributes:
        trim: Allow ``trim``.
        empty_cache: Allow ``empty cache``.
        smaller: Allow ``smaller pieces``.
        offload: Allow ``offload``. A model that generates stays on the CPU after it.
    """

    trim: bool = True
    empty_cache: bool = True
    smaller: bool = True
    offload: bool = False

    def __call__(self, trouble: Trouble) -> str | None:
        """Return the next step that can still be taken; None gives up."""
        taken = {step.action for step in trouble.steps}
        for action, allowed in ((TRIM, self.trim), (EMPTY_CACHE, self.empty_cache)):
            if allowed and action not in taken:
                return action
        if self.smaller and trouble.pieces > trouble.least:
            return SMALLER
        can_offload = self.offload and trouble.can_offload and OFFLOAD not in taken
        return OFFLOAD if can_offload else None


_thread = threading.local()


@contextlib.contextmanager
def recording(steps: list[RecoveryStep]) -> Iterator[None]:
    """Add to ``steps`` what this thread has to do about memory while the block runs."""
    before: tuple[list[RecoveryStep], ...] = getattr(_thread, "records", ())
    _thread.records = (*before, steps)
    try:
        yield
    finally:
        _thread.records = before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory: ours, Python's or PyTorch's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in _CPU_MESSAGES)


def with_recovery(
    work: Callable[[int], T],
    pieces: int,
    *,
    name: str,
    device: torch.device | str,
    pool: HybridMemoryPool,
    least: int = 1,
    offload: Callable[[], T] | None = None,
) -> T:
    """Do ``work(pieces)``; when memory runs out, do what the pool's policy says and do it again.

    Args:
        work: Called with the size of its pieces. It must be able to begin again, or to go on from
            where it was, and its result must not depend on the size.
        pieces: The size to begin with.
        name: For the log.
        device: Whose memory it uses.
        pool: Has the policy, and keeps the steps.
        least: Smallest size of pieces.
        offload: Does the work on the CPU.

    Raises:
        ConfigurationError: The policy wants a step that there is not.
        Exception: What ``work`` raised last, if the policy gives up or memory was not lacking.
    """
    steps: list[RecoveryStep] = []
    do: Callable[[], T] = lambda: work(pieces)  # noqa: E731
    while True:
        try:
            return do()
        except (MemoryError, RuntimeError) as error:
            trouble = Trouble(name, tuple(steps), pieces, least, offload is not None)
            action = pool.recovery_policy(trouble) if is_out_of_memory(error) else None
            if action is None:
                raise
            message = _said(error)
        if action == SMALLER:
            pieces = max(least, pieces // 2)
        elif action == OFFLOAD and offload is not None:
            do = offload
        step = RecoveryStep(action, name, message, _act(action, pieces, device, pool))
        _record(step, steps, pool.recoveries, *getattr(_thread, "records", ()))


def _record(step: RecoveryStep, *records: list[RecoveryStep] | deque[RecoveryStep]) -> None:
    """Log a step and add it to every record there is."""
    for record in records:
        record.append(step)
    logger.warning("%s", step)


def _said(error: Exception) -> str:
    """Return the first line of what was raised, and let go of what its frames hold."""
    # Those below the caller hold the tensors that the work had made so far.
    traceback.clear_frames(error.__traceback__)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _act(action: str, pieces: int, device: torch.device | str, pool: HybridMemoryPool) -> str:
    """Take a step, and say what it did."""
    if action == TRIM:
        return f"{pool.trim()} bytes given back"
    if action == EMPTY_CACHE:
        found = gc.collect()
        freed = empty_native_cache(torch.device(device))
        return f"{found} objects collected, {freed} bytes given back to {device}"
    if action == SMALLER:
        return f"pieces of {pieces} from now on"
    if action == OFFLOAD:
        return "done on the CPU"
    raise ConfigurationError(f"the recovery policy wants {action!r}, which is no step")
