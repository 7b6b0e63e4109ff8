"""What ``bitnet chat`` remembers, and its commands."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_torch.cli.model import compiling_note, settings_of
from bitnet_torch.cli.output import write
from bitnet_torch.cli.progress import prefill_bar
from bitnet_torch.errors import GenerationError
from bitnet_torch.io import atomic_file

if TYPE_CHECKING:
    from bitnet_torch.generate import LanguageModel

HELP = """\
/reset        forget the conversation, but not the system prompt
/save FILE    write the conversation to a JSON file
/help         this list
//text        say /text to the model
Ctrl-C        stop the answer; what there is of it stays
Ctrl-D        end"""


class Conversation:
    """The messages so far, and the model that answers them.

    Args:
        lm: With a chat template.
        args: The command's settings; ``system`` is the first message if there is one.
    """

    def __init__(self, lm: LanguageModel, args: argparse.Namespace) -> None:
        from bitnet_torch.generate import PrefixCache

        self._lm, self._args = lm, args
        # Each turn reads only what is new in it.
        self._prefix = PrefixCache()
        self.messages: list[dict[str, str]] = []
        self._reset()

    def command(self, line: str) -> str:
        """Do what a line that begins with ``/`` says; return what there is to say about it.

        Raises:
            GenerationError: There is no such command, or it lacks its argument.
            OSError: A file cannot be written.
        """
        name, _, rest = line[1:].partition(" ")
        if name == "help":
            return HELP
        if name == "reset":
            self._reset()
            return "(forgotten)"
        if name == "save":
            return self._save(rest.strip())
        raise GenerationError(f"there is no command /{name}; /help lists them")

    def answer(self, text: str) -> None:
        """Write the answer to ``text`` as it comes, and remember both.

        Ctrl-C ends the answer; what there is of it is remembered.

        Raises:
            GenerationError: The conversation does not fit the context, or the chat template
                refuses it. It is as it was before.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        pieces: list[str] = []
        try:
            with prefill_bar() as progress:
                settings = {
                    **settings_of(self._args, progress),
                    "prefix_cache": self._prefix,
                }
                stream = self._lm.chat(messages, self._args.max_new_tokens, **settings)
                for piece in stream:
                    pieces.append(piece)
                    write(piece)
            write("\n")
            sys.stderr.write(compiling_note(stream.results()[0]))
        except KeyboardInterrupt:
            write("\n(stopped)\n")
        self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _reset(self) -> None:
        self._prefix.clear()
        system = self._args.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def _save(self, name: str) -> str:
        if not name:
            raise GenerationError("/save needs the name of a file")
        text = json.dumps({"messages": self.messages}, indent=2) + "\n"
        with atomic_file(Path(name)) as path:
            path.write_text(text, encoding="utf-8")
        return f"(saved {len(self.messages)} messages to {name})"
