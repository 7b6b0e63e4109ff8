"""Entry point of ``bitnet``: choose the command, and turn what goes wrong into one line.

======  ===========================================================
status  meaning
======  ===========================================================
0       done
1       an error, in one line on stderr; ``--debug`` adds the traceback
2       the command line is wrong
130     ended by Ctrl-C
141     nobody reads the output any more (``bitnet ... | head``)
======  ===========================================================
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from bitnet_torch import __version__
from bitnet_torch.cli import (
    bench,
    chat,
    convert,
    demo,
    doctor,
    evaluate,
    generate,
    inspect,
    memory,
    train,
)
from bitnet_torch.cli.output import flush_or_abandon
from bitnet_torch.cli.parser import Parser, add_debug
from bitnet_torch.diagnostics import configure_logging
from bitnet_torch.errors import BitNetError

COMMANDS = (demo, generate, chat, train, convert, inspect, evaluate, bench, memory, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: The arguments after ``bitnet``; ``sys.argv`` if None.
    """
    try:
        args = _parse(argv)
    except SystemExit as end:
        # argparse ends the process itself, after --help and after a usage error.
        flush_or_abandon()
        return int(end.code or 0)
    try:
        configure_logging()
        status: int = args.run(args)
        print(end="", flush=True)
        return status
    except KeyboardInterrupt as stop:
        flush_or_abandon()
        # The trainer says where it can be continued; a plain Ctrl-C says nothing.
        sys.stderr.write(f"\nbitnet: {stop}\n" if stop.args else "\n")
        return 130
    except BrokenPipeError:
        flush_or_abandon()
        return 141
    except (BitNetError, OSError, MemoryError) as error:
        if args.debug:
            traceback.print_exc()
        flush_or_abandon()
        sys.stderr.write(f"bitnet: error: {describe(error)}\n")
        return 1


def build_parser() -> Parser:
    """Return the parser of every command."""
    parser = Parser(
        prog="bitnet",
        description="Train, pack and run 1.58-bit language models.",
        epilog="example:\n  bitnet demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bitnet-torch {__version__}")
    add_debug(parser, default=False)
    parser.set_defaults(run=None, command=parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def describe(error: BaseException) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.command.refuse_unknown(unknown)
    if args.run is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    return args
