"""A progress bar for reading and writing checkpoints, where somebody waits and watches.

It is drawn on stderr, if that is a terminal, after one second, by tqdm, if that is installed.
Without it the work is done in silence, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec

_SECONDS_OF_SILENCE = 1.0


@contextlib.contextmanager
def byte_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the bytes just done.

    Args:
        what: What is being done, for people.
        total: Bytes in all.
    """
    if find_spec("tqdm") is None:
        yield _ignore
        return
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=what,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        delay=_SECONDS_OF_SILENCE,
        leave=False,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
    ) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


def _ignore(count: int) -> None:
    """Count for nobody."""
