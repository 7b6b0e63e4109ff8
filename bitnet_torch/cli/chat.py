"""``bitnet chat``: a conversation in the terminal, or line by line on a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_torch.cli.model import load_model
from bitnet_torch.cli.output import write
from bitnet_torch.cli.parser import Parser, add_command, add_generation, add_model, add_sampling

if TYPE_CHECKING:
    from bitnet_torch.cli.conversation import Conversation
    from bitnet_torch.generate import LanguageModel

PROMPT = "> "


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "chat",
        run,
        purpose="talk with a model that has a chat template",
        example="bitnet chat bitnet-2B-4T --system 'Answer in one sentence.'",
    )
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all else")
    parser.add_argument(
        "--chat-template", metavar="FILE", help="a Jinja template to use instead of the model's"
    )
    add_sampling(parser, temperature=0.7, seed=None)
    add_generation(parser)


def run(args: argparse.Namespace) -> int:
    """Read lines until the end of stdin, and answer each."""
    from bitnet_torch.cli.conversation import Conversation

    lm = load_model(args.model, args)
    _set_template(lm, args)
    conversation = Conversation(lm, args)
    if sys.stdin.isatty():
        # Line editing, where Python has it.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        write("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.\n")
    while (line := _read_line()) is not None:
        _serve(conversation, line)
    return 0


def _set_template(lm: LanguageModel, args: argparse.Namespace) -> None:
    from bitnet_torch.errors import GenerationError
    from bitnet_torch.io.tokenizer_files import read_template

    if args.chat_template is not None:
        special = getattr(lm.tokenizer, "special_tokens", {})
        lm.tokenizer.chat_template = read_template(Path(args.chat_template), special)
    elif lm.tokenizer.chat_template is None:
        raise GenerationError(
            f"{args.model} has no chat template: it continues texts (`bitnet generate`), unless "
            "--chat-template names one"
        )


def _read_line() -> str | None:
    """Return the next line, or None at the end of stdin."""
    if not sys.stdin.isatty():
        raw = sys.stdin.buffer.readline()
        return raw.decode("utf-8", "surrogateescape").rstrip("\r\n") if raw else None
    while True:
        try:
            return input(PROMPT)
        except EOFError:
            write("\n")
            return None
        except KeyboardInterrupt:
            write("\n(Ctrl-D ends)\n")


def _serve(conversation: Conversation, line: str) -> None:
    """Do what a line says. An error in it is said and the conversation goes on."""
    from bitnet_torch.errors import GenerationError

    if not line.strip():
        return
    try:
        if line.startswith("/") and not line.startswith("//"):
            write(conversation.command(line) + "\n")
        else:
            conversation.answer(line[1:] if line.startswith("//") else line)
    except KeyboardInterrupt:
        # A file is written whole or not at all, so nothing is lost by going on.
        write("\n(stopped)\n")
    except (GenerationError, OSError) as error:
        sys.stderr.write(f"bitnet: error: {error}\n")
