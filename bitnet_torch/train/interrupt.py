"""Ctrl-C during training: finish the step, save, then stop.

An interrupt in the middle of an optimizer step would leave half of the weights updated.
Inside :func:`deferred_interrupt` the first Ctrl-C is only noted; the trainer asks between
steps. A second Ctrl-C is not noted but raised at once, for those who cannot wait.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupt:
    """Whether someone has asked to stop."""

    requested: bool = False


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Note the first SIGINT inside the block instead of raising KeyboardInterrupt.

    Python delivers signals to the main thread only; in any other thread nothing is changed.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        interrupt.requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
