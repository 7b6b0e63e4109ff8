"""Progress on stderr: a moving bar on a terminal, now and then a line in a log file."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from bitnet_torch.diagnostics.extras import require

T = TypeVar("T")

# A terminal redraws one line; a file keeps every update, so it gets one per half minute.
_SECONDS_BETWEEN_UPDATES = {True: 0.2, False: 30.0}


def count_up(items: list[T], what: str, *, shown: bool) -> Iterable[T]:
    """Iterate over ``items`` behind a bar, or without one.

    Raises:
        MissingDependencyError: A bar is wanted and tqdm is not installed.
    """
    if not shown:
        return items
    bar: Iterator[T] = require("tqdm", extra="train").tqdm(items, desc=what, **_settings())
    return bar


class TrainingBar:
    """The bar of a training run: loss, bits/byte, tokens/s and the time that is left.

    Raises:
        MissingDependencyError: tqdm is not installed.
    """

    def __init__(self, *, steps: int, done: int) -> None:
        self._bar = require("tqdm", extra="train").tqdm(
            total=steps,
            initial=done,
            unit="step",
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix} "
            "[{elapsed} < {remaining}]",
            **_settings(),
        )

    def __enter__(self) -> TrainingBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, *, phase: str, loss: float, held_out: float | None, speed: float) -> None:
        """Show one more step: loss in nats/byte, newest held-out bits/byte, tokens per second."""
        held = "" if held_out is None else f", held-out {held_out:.3f}"
        text = f"loss {loss:.3f}, {loss / math.log(2):.3f} bits/byte{held}, {speed:,.0f} tokens/s"
        self._bar.set_description_str(phase, refresh=False)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)


def _settings() -> dict[str, object]:
    on_terminal = sys.stderr.isatty()
    return {
        "file": sys.stderr,
        "mininterval": _SECONDS_BETWEEN_UPDATES[on_terminal],
        "dynamic_ncols": on_terminal,
    }
