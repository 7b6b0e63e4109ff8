"""A tiny byte-level checkpoint, and `bitnet` called in this process or in its own."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from bitnet_torch.cli.main import main
from bitnet_torch.io import ByteTokenizer, save_pretrained
from bitnet_torch.models import CausalLM, ModelConfig
from tests.diagnostics.logging_state import restored_logging

CONTEXT = 64


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    status: int
    out: str
    err: str

    def refused(self, status, *words):
        """Whether it ended so, with one line on stderr that holds these words, nothing else."""
        one_line = self.err.startswith("bitnet: error: ") and self.err.count("\n") == 1
        return (
            self.status == status
            and one_line
            and self.out == ""
            and all(word in self.err for word in words)
        )


@pytest.fixture(autouse=True)
def _logging(monkeypatch):
    monkeypatch.delenv("BITNET_LOG", raising=False)
    monkeypatch.delenv("BITNET_DEBUG", raising=False)
    with restored_logging():
        yield


@pytest.fixture
def bitnet(capfd):
    """Call a command in this process."""

    def call(*arguments):
        capfd.readouterr()
        status = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Ended(status, out, err)

    return call


@pytest.fixture
def process():
    """Start a command in a process of its own, with its output piped."""
    started = []

    def start(*arguments, **settings):
        command = [sys.executable, "-c", "import sys; from bitnet_torch.cli.main import main; "]
        command[-1] += "sys.exit(main())"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        made = subprocess.Popen([*command, *map(str, arguments)], **(pipes | settings))
        started.append(made)
        return made

    yield start
    for made in started:
        made.kill()
        made.communicate()


def write_checkpoint(folder, context=CONTEXT):
    config = ModelConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
    )
    model = CausalLM(config)
    model.init_weights(seed=0)
    save_pretrained(model, folder, tokenizer=ByteTokenizer())
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder that must not be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def long_checkpoint(tmp_path_factory):
    """A checkpoint whose context takes longer to fill than any test waits."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "long", context=1 << 16)
