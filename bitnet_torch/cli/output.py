"""What the commands print: text that any terminal takes, and JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any


def write(text: str) -> None:
    """Write ``text`` to stdout now; characters that its encoding lacks become ``?``."""
    # There is no stdout at all in a process that was started with it closed.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def discard(text: str) -> None:
    """Write nothing, where :func:`write` would be the other choice."""


def write_rows(rows: dict[str, str]) -> None:
    """Write facts under each other, the names in a column of their own."""
    write("".join(f"  {name:<9}{fact}\n" for name, fact in rows.items()))


def write_json(values: dict[str, Any]) -> None:
    """Write one JSON object, in ASCII, so that it survives every encoding."""
    write(json.dumps(values, indent=2) + "\n")


def flush_or_abandon() -> None:
    """Flush stdout, or lose what is left where nobody can take it.

    Without this the interpreter tries again at its end and prints a complaint of its own.
    """
    try:
        print(end="", flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # A replaced stdout, in a test or a notebook, has no descriptor to redirect.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
