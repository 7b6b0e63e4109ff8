"""Track a block of a program and write what was seen: the short way to all of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.memory.pool import HybridMemoryPool
from bitnet_torch.memory.tracker import MemoryTracker


@contextlib.contextmanager
def track(
    module: nn.Module | None = None,
    *,
    level: str = "full",
    backend: str = "auto",
    html: str | os.PathLike[str] | None = None,
    chrome_trace: str | os.PathLike[str] | None = None,
    memory_viz: str | os.PathLike[str] | None = None,
) -> Iterator[MemoryTracker]:
    """Track memory while the block runs, then write what is asked for, also after an error.

    Example::

        with bt.memory.track(lm.model, html="memory.html") as tracker:
            lm.generate("Good night, good ")
        print(tracker.profile_report())

    Args:
        module: Attribute memory to its parts; None: to those of every module that is called.
        level: ``"track"``, or ``"full"`` for lines of the program as well.
        backend: As of :meth:`MemoryTracker.start`.
        html: Write a page here.
        chrome_trace: Write a trace for ``chrome://tracing`` and Perfetto here.
        memory_viz: Write a pickle for PyTorch's memory viewer here.

    Raises:
        ConfigurationError: A folder is missing, a setting wrong, or a tracker runs already.
        BackendUnavailableError: The backend asked for by name cannot be had here.
    """
    for path in (html, chrome_trace, memory_viz):
        if path is not None and not Path(path).parent.is_dir():
            raise ConfigurationError(f"{path}: there is no folder {Path(path).parent}")
    tracker = HybridMemoryPool.instance().get_memory_tracker().start(level, backend=backend)
    try:
        if module is None:
            tracker.attach_all()
        else:
            tracker.attach(module)
        yield tracker
    finally:
        try:
            _write(tracker, html, chrome_trace, memory_viz)
        finally:
            tracker.detach()
            tracker.stop()


def _write(tracker: MemoryTracker, *paths: str | os.PathLike[str] | None) -> None:
    """Write page, trace and pickle, each where there is a path for it."""
    writers: tuple[Callable[[str | os.PathLike[str]], object], ...] = (
        tracker.write_html,
        tracker.export_chrome_trace,
        tracker.dump_snapshot,
    )
    for path, write in zip(paths, writers, strict=True):
        if path is not None:
            write(path)
