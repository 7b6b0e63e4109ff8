"""The bar of a long prompt, on stderr, where somebody waits and watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec

_SECONDS_OF_SILENCE = 1.0


@contextlib.contextmanager
def prefill_bar() -> Iterator[Callable[[int, int], None]]:
    """Yield what takes the tokens that are done and all there are.

    The bar appears after one second, if stderr is a terminal and tqdm is installed, and goes
    when the prompt is done.
    """
    if find_spec("tqdm") is None or not sys.stderr.isatty():
        yield _ignore
        return
    from tqdm import tqdm

    with tqdm(
        desc="reading the prompt",
        unit="token",
        delay=_SECONDS_OF_SILENCE,
        leave=False,
        file=sys.stderr,
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        yield advance


def _ignore(done: int, total: int) -> None:
    """Count for nobody."""
