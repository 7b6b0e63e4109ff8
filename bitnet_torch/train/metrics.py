"""The metrics file: one JSON object per line, in step order.

A row of training has ``step``, and of that one step ``loss`` (nats per byte of its batch),
``bits_per_byte`` (the same in bits), ``learning_rate`` and ``tokens_per_second``; steps between
two rows leave no trace. A row of evaluation has ``step`` and ``held_out_bits_per_byte``. Where
the text is tokens, ``byte`` is ``token`` in these names. A row of telemetry has ``step`` and
``telemetry`` (:mod:`bitnet_torch.train.telemetry`). ``step`` counts optimizer steps done.

When a run is continued from a checkpoint, rows past the checkpoint are dropped: their steps
are done again, and the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.atomic import atomic_file

Row = dict[str, Any]


class MetricsLog:
    """Appends rows to the file; each row is in the file when :meth:`write` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Unbuffered: what a full disk has refused must not be tried once more when it is closed.
        self._file = path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Append a row.

        Raises:
            CheckpointError: The file cannot be written.
        """
        rest = (json.dumps(row) + "\n").encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise CheckpointError(
                f"metrics file {self._path} could not be written: {error.strerror}; checkpoints "
                "are as they were",
                file=str(self._path),
            ) from error

    def sync(self) -> None:
        """Wait until the disk has every row; a checkpoint must not outlive its metrics."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a metrics file.

    A last line without an end is what a kill in the middle of a write leaves; it is left out.

    Raises:
        CheckpointError: A whole line is not a JSON object with a step.
    """
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path} line {number} is not a row of metrics: {line[:80]!r}",
                file=str(path),
                line=number,
            ) from error
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Rewrite the file without the rows of steps after ``step``."""
    rows = [row for row in read_metrics(path) if row["step"] <= step] if path.exists() else []
    with atomic_file(path) as aside:
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
