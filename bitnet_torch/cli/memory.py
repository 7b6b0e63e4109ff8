"""``bitnet memory``: run a command or a Python program, and say what its memory was for."""

from __future__ import annotations

import argparse
import contextlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitnet_torch.cli.output import write, write_json
from bitnet_torch.cli.parser import Parser, add_command, add_json
from bitnet_torch.errors import ConfigurationError


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "memory",
        run,
        purpose="run a command and report where every byte of its memory went",
        example="bitnet memory --html memory.html -- demo --tokens 50",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with timeline and tables")
    parser.add_argument("--chrome-trace", metavar="FILE", help="write a trace for Perfetto")
    parser.add_argument(
        "--snapshot", metavar="FILE", help="write a pickle for PyTorch's memory viewer"
    )
    parser.add_argument(
        "--level",
        choices=("track", "full"),
        default="full",
        help="full also remembers lines of the program (default: %(default)s)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "allocator", "dispatch"),
        default="auto",
        help="who counts: allocator is exact and needs a C++ compiler (default: %(default)s)",
    )
    parser.add_argument(
        "--order-by",
        choices=("peak", "current", "allocated", "allocs"),
        default="peak",
        help="order of the tables (default: %(default)s)",
    )
    parser.add_argument("--rows", type=int, default=10, metavar="N", help="lines of each table")
    add_json(parser)
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND",
        help="a command of bitnet with its arguments, or a Python file with its own",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command, print the tables, and return the command's status."""
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise ConfigurationError("after -- comes a command, as in: bitnet memory -- demo")
    if args.rows < 1:
        raise ConfigurationError(f"--rows must be at least 1, got {args.rows}")
    from bitnet_torch.memory import track

    # With --json the report is all there is on stdout.
    aside = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    with track(
        level=args.level,
        backend=args.backend,
        html=args.html,
        chrome_trace=args.chrome_trace,
        memory_viz=args.snapshot,
    ) as tracker:
        with aside:
            status = _run(words)
        report = tracker.report()
    files = [file for file in (args.html, args.chrome_trace, args.snapshot) if file]
    if args.json:
        facts = {"command": words, "status": status, "reason": tracker.backend_reason}
        write_json({**facts, **report.to_dict(args.rows), "files": files})
        return status
    write("\n" + report.table(args.order_by, args.rows))
    if tracker.backend_reason:
        write(f"inexact, because {tracker.backend_reason}\n")
    write("".join(f"wrote {file}\n" for file in files))
    return status


def _run(words: Sequence[str]) -> int:
    """Run a command of bitnet, or a Python file as ``python FILE`` would; return its status."""
    from bitnet_torch.cli import main

    if words[0].endswith(".py"):
        return _run_file(Path(words[0]), words)
    if words[0] == "memory" or words[0].startswith("-"):
        raise ConfigurationError(f"{words[0]!r} cannot be tracked; name a command or a Python file")
    return main.main(list(words))


def _run_file(file: Path, words: Sequence[str]) -> int:
    if not file.is_file():
        raise ConfigurationError(f"{file}: there is no such file", file=str(file))
    with _as_script(file, words):
        try:
            runpy.run_path(str(file), run_name="__main__")
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                return end.code or 0
            sys.stderr.write(f"{end.code}\n")
            return 1
    return 0


@contextlib.contextmanager
def _as_script(file: Path, words: Sequence[str]) -> Iterator[None]:
    """Give a file the arguments and the path that it would have had."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = list(words)
    sys.path.insert(0, str(file.resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
