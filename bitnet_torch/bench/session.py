"""One run of the harness: the environment, the limits, the rows, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from bitnet_torch.bench.cases import MakeCase, Run
from bitnet_torch.bench.device_timing import Cuda, DeviceSampler
from bitnet_torch.bench.environment import describe_environment, file_stem
from bitnet_torch.bench.limits import ATTEMPTS, measure_limits
from bitnet_torch.bench.picture import draw_rows
from bitnet_torch.bench.row import Row
from bitnet_torch.bench.rows_file import append_rows
from bitnet_torch.bench.timing import Effort, MakeSampler
from bitnet_torch.errors import BackendUnavailableError
from bitnet_torch.io.atomic import atomic_file


def begin(effort: Effort, attempts: int = ATTEMPTS, device: str = "cpu") -> Run:
    """Describe this machine and measure its limits, with the current number of threads.

    Raises:
        BackendUnavailableError: ``device`` is ``"cuda"`` and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError("there is no CUDA device here", device=device)
    environment = describe_environment(device)
    limits = None
    # Without the kernel library there is nothing to measure the limits with.
    if device == "cuda" or environment.backend == "cpu":
        limits = measure_limits(environment.threads, environment.device, attempts)
    return Run(environment, limits, effort, None if device == "cpu" else _on_gpu(effort))


def _on_gpu(effort: Effort) -> MakeSampler:
    gpu = Cuda()
    return lambda contender: DeviceSampler(contender.calls, effort.sample_seconds, gpu)


def run_cases(run: Run, makers: Iterable[MakeCase], show: Callable[[Row], None]) -> list[Row]:
    """Measure case after case.

    Args:
        run: From :func:`begin`.
        makers: Each makes one case, whose buffers are given up before the next is made.
        show: Called with each row as it comes.

    Raises:
        BitNetError: A result is wrong; what was measured before is lost, because a program
            that computes wrong results has no speed.
    """
    rows = []
    for make in makers:
        rows.append(run.row(make()))
        show(rows[-1])
    return rows


def keep(rows: Sequence[Row], folder: Path, name: str = "") -> tuple[Path, Path]:
    """Append rows to ``<machine>.jsonl`` and draw them; return both files.

    Args:
        rows: Of one run.
        folder: Made if it is absent.
        name: Of the picture, after the machine; that of the suite if empty.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = file_stem(rows[0].environment)
    lines, picture = (
        folder / f"{stem}.jsonl",
        folder / f"{stem}-{name or rows[0].subject.suite}.png",
    )
    append_rows(lines, rows)
    draw_rows(rows, picture)
    return lines, picture


def keep_text(text: str, row: Row, folder: Path, name: str) -> Path:
    """Write a run's table to ``<machine>-<name>.txt``; return the file.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_stem(row.environment)}-{name}.txt"
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path
