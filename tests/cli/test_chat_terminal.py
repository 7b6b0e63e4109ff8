"""`bitnet chat` on a pseudo-terminal: Ctrl-C ends an answer, Ctrl-D ends the program."""

import json
import os
import select
import subprocess
import sys
import time

import pytest

from tests.cli.test_chat import TEMPLATE, USER

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

# A session's leader gets the first terminal that it opens as the one whose Ctrl-C it hears.
START = (
    "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); "
    "from bitnet_torch.cli.main import main; sys.exit(main())"
)


class Terminal:
    """A command on a terminal of its own; every wait has an end."""

    def __init__(self, *arguments):
        self._end, theirs = os.openpty()
        command = [sys.executable, "-c", START, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._seen = b""

    def type(self, keys):
        os.write(self._end, keys)

    def read_some(self, seconds=60.0):
        """Wait for something more to be shown."""
        ready = select.select([self._end], [], [], max(seconds, 0.0))[0]
        assert ready, f"nothing more after {self._seen[-500:]!r}"
        self._seen += os.read(self._end, 4096)

    def read_until(self, marker, seconds=60):
        """Wait for ``marker``; what is shown after it is kept for the next call."""
        deadline = time.monotonic() + seconds
        while marker not in self._seen:
            self.read_some(deadline - time.monotonic())
        self._seen = self._seen.partition(marker)[2]

    def close(self):
        self.process.kill()
        self.process.wait(60)
        os.close(self._end)


@pytest.fixture
def terminal(long_checkpoint, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    settings = ("--chat-template", template, "--seed", 1, "--max-new-tokens", 60000)
    made = Terminal("chat", long_checkpoint, *settings)
    yield made
    made.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_ends(terminal, tmp_path):
    file = tmp_path / "c.json"
    terminal.read_until(b"Ctrl-D ends.")
    terminal.read_until(b"> ")
    terminal.type(b"hi\n")
    terminal.read_until(b"hi\r\n")
    # Once a piece of the answer has come there is something to stop.
    terminal.read_some()
    terminal.type(b"\x03")
    terminal.read_until(b"(stopped)\r\n")
    terminal.read_until(b"> ")
    terminal.type(f"/save {file}\n".encode())
    terminal.read_until(b"(saved 2 messages")
    terminal.read_until(b"> ")
    terminal.type(b"\x04")
    assert terminal.process.wait(60) == 0
    user, answer = json.loads(file.read_text())["messages"]
    assert user == USER
    assert answer["role"] == "assistant"
