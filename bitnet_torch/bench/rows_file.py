"""A file of rows, one JSON object a line, to which runs append."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bitnet_torch.bench.row import Row, row_from_json
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.io.atomic import atomic_file


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read every row of a file, oldest first.

    Raises:
        ConfigurationError: The file is missing, or a line is no row; the message names it.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(f"{file}: no such file", file=str(file))
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(row_from_json(line))
        except ConfigurationError as error:
            raise ConfigurationError(f"{file}, line {number}: {error}", line=number) from error
    return rows


def append_rows(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Add rows to a file, which afterwards has all of them or is as it was.

    Raises:
        ConfigurationError: The file holds something else than rows.
        OSError: It cannot be written.
    """
    file = Path(path)
    old = read_rows(file) if file.exists() else []
    with atomic_file(file) as aside:
        text = "".join(row.to_json() + "\n" for row in (*old, *rows))
        aside.write_text(text, encoding="utf-8")
