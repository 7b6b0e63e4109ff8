"""Which line of the user's program asked for memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

# Frames of these folders carry out what the program asked for and are never its line.
_INNER = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@dataclass(frozen=True, slots=True)
class Site:
    """A line of a program.

    Attributes:
        file: Path of the source file.
        line: Number of the line.
        function: Name of the function it is in.
    """

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function})"


def is_inner(file: str) -> bool:
    """Whether a file belongs to PyTorch, to this package's memory layer or to no file at all."""
    return file.startswith(_INNER) or file.startswith("<")


def caller_site() -> Site | None:
    """Return the innermost line of the current thread that is neither ours nor PyTorch's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not is_inner(code.co_filename):
            return Site(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return None


def current_stack(depth: int) -> tuple[Site, ...]:
    """Return the program's own lines that led here, innermost first, at most ``depth``."""
    frame: FrameType | None = sys._getframe(1)
    found: list[Site] = []
    while frame is not None and len(found) < depth:
        code = frame.f_code
        if not is_inner(code.co_filename):
            found.append(Site(code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(found)
