"""How the command line is read: one-line usage errors, an example at the end of every help."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import NoReturn

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that refuses in one line and knows no abbreviations."""

    def error(self, message: str) -> NoReturn:
        """End with status 2 and one line that says what is wrong and where to look."""
        self.exit(2, f"bitnet: error: {message} (see '{self.prog} --help')\n")

    def refuse_unknown(self, arguments: Sequence[str]) -> NoReturn:
        """End as :meth:`error` does, naming the nearest flag of this command."""
        unknown = arguments[0].partition("=")[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown, flags, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unknown argument {unknown!r}{hint}")


def add_command(
    subparsers: argparse._SubParsersAction[Parser],
    name: str,
    run: Run,
    *,
    purpose: str,
    example: str,
) -> Parser:
    """Add a subcommand and return its parser.

    Args:
        subparsers: Of the root parser.
        name: What is typed after ``bitnet``.
        run: Does the work and returns the exit status.
        purpose: One sentence for the list of commands.
        example: A command line that works.
    """
    parser = subparsers.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_debug(parser, default=argparse.SUPPRESS)
    parser.set_defaults(run=run, command=parser)
    return parser


def add_debug(parser: Parser, default: bool | str) -> None:
    """Add ``--debug``, which is valid before and after the name of a command."""
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show the traceback of an error"
    )


def add_json(parser: Parser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_sampling(parser: Parser, temperature: float, seed: int | None) -> None:
    """Add the settings of :class:`~bitnet_torch.generate.Sampling`, which checks their ranges."""
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="T",
        help="0 takes the most likely token, larger is more random (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="choose from the K most likely tokens"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="choose from the most likely tokens whose probabilities reach P (default: all)",
    )
    shown = "" if seed is None else " (default: %(default)s)"
    parser.add_argument(
        "--seed", type=int, default=seed, help=f"the same seed gives the same text{shown}"
    )


def add_generation(parser: Parser) -> None:
    """Add what generation can be asked for beside sampling."""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="end after N tokens (default: at the end of the context)",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="leave out tokens less likely than P times the most likely one (default: none)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1, tokens of the text so far become less likely (default: %(default)s)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    parser.add_argument(
        "--cache",
        choices=("model", "int8"),
        default="model",
        help="keep keys and values in the model's dtype or in half of it (default: %(default)s)",
    )
    parser.add_argument(
        "--speculative",
        type=int,
        nargs="?",
        const=8,
        metavar="K",
        help="guess up to K tokens (8) from the text itself: the same text in fewer passes",
    )


def add_model(parser: Parser) -> None:
    """Add the model's folder and where and how it is to run."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder")
    parser.add_argument("--device", help="cpu, cuda or mps (default: cpu)")
    add_dtype(parser, "of the computation (default: as stored)")
    add_allow_degenerate(parser)


def add_dtype(parser: Parser, purpose: str, default: str | None = None) -> None:
    """Add ``--dtype``."""
    choices = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=choices, default=default, help=purpose)


def add_allow_degenerate(parser: Parser) -> None:
    """Add ``--allow-degenerate``."""
    parser.add_argument(
        "--allow-degenerate",
        action="store_true",
        help="take matrices that are all zero and numbers that are not finite",
    )
