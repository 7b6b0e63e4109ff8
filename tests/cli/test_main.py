"""Exit statuses, one-line errors, and ends that nobody planned."""

import errno
import os
import shlex
import signal
import subprocess
import sys

import pytest

from bitnet_torch import __version__
from bitnet_torch.cli import doctor
from bitnet_torch.cli.main import COMMANDS, build_parser, describe, main
from bitnet_torch.errors import BitNetError

NAMES = (
    *("demo", "generate", "chat", "train", "convert"),
    *("inspect", "eval", "bench", "memory", "doctor"),
)


def test_help_and_usage_errors_do_not_import_torch():
    code = (
        "import sys; from bitnet_torch.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['generate', '--help']) == 0\n"
        "assert main(['demo', '--unknown']) == 2\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help_that_ends_with_an_example(bitnet, name):
    ended = bitnet(name, "--help")
    assert ended.status == 0
    assert ended.out.rstrip().rpartition("example:\n")[2].strip().startswith(f"bitnet {name}")


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_a_valid_command_line(name):
    action = next(a for a in build_parser()._actions if a.dest == "==SUPPRESS==" or a.choices)
    example = action.choices[name].epilog.partition("bitnet ")[2]
    assert build_parser().parse_args(shlex.split(example)).run is not None


def test_no_command_prints_the_help_and_is_bad_usage(bitnet):
    ended = bitnet()
    assert ended.status == 2
    assert ended.out == ""
    assert all(name in ended.err for name in NAMES)
    assert len(COMMANDS) == len(NAMES)


def test_version_is_printed(bitnet):
    assert bitnet("--version").out == f"bitnet-torch {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], ["'fly'", "demo", "see 'bitnet --help'"]),
        (
            ["demo", "--prompts", "x"],
            ["'--prompts'", "did you mean --prompt?", "bitnet demo --help"],
        ),
        (["generate", "m", "x", "--sede=3"], ["'--sede'", "did you mean --seed?"]),
        (["generate", "m", "x", "--seed", "abc"], ["--seed", "'abc'"]),
        (["generate", "m", "x", "--dtype", "int8"], ["--dtype", "'int8'", "float32"]),
        (["generate", "m"], ["PROMPT"]),
        (["generate", "m", "x", "extra"], ["'extra'"]),
        (["eval", "m"], ["--text"]),
        (["train"], ["--config"]),
        (["train", "--config"], ["--config"]),
    ],
)
def test_a_wrong_command_line_ends_with_status_2_and_one_line(bitnet, arguments, words):
    assert bitnet(*arguments).refused(2, *words)


def test_an_unknown_log_level_is_one_line(bitnet, monkeypatch):
    monkeypatch.setenv("BITNET_LOG", "loud")
    assert bitnet("doctor").refused(1, "BITNET_LOG", "'loud'")


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_adds_the_traceback(bitnet, tmp_path, place):
    command = ["generate", tmp_path / "absent", "x"]
    ended = bitnet(*(["--debug", *command] if place == "before" else [*command, "--debug"]))
    assert ended.status == 1
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1].startswith("bitnet: error: checkpoint ")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BitNetError("two\n  lines"), "two lines"),
        (OSError(errno.EACCES, "Permission denied", "a.txt"), "a.txt: Permission denied"),
        (OSError("disk is gone"), "disk is gone"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_is_told_in_one_line(error, text):
    assert describe(error) == text


def test_an_error_of_our_own_making_shows_where_it_is(monkeypatch):
    monkeypatch.setattr("bitnet_torch.diagnostics.doctor.examine", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_ctrl_c_passes_on_where_a_run_can_be_continued(bitnet, monkeypatch):
    def stop(args):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr(doctor, "run", stop)
    ended = bitnet("doctor")
    assert (ended.status, ended.err) == (130, "\nbitnet: stopped after step 3\n")


posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")


@posix
def test_ctrl_c_while_text_streams_ends_with_130_and_a_newline(process, long_checkpoint):
    running = process("generate", long_checkpoint, "x", "--temperature", "1", "--seed", "0")
    assert running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"\n")


@posix
def test_a_closed_pipe_ends_quietly(process, long_checkpoint):
    running = process("generate", long_checkpoint, "x", "--temperature", "1", "--seed", "0")
    assert running.stdout.read(1)
    running.stdout.close()
    assert running.wait(timeout=60) == 141
    assert running.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line(process, checkpoint):
    with open("/dev/full", "w") as full:
        running = process("generate", checkpoint, "x", "--max-new-tokens", "2", stdout=full)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err == b"bitnet: error: [Errno 28] No space left on device\n"


@posix
def test_a_closed_stdout_is_no_error(process, checkpoint):
    running = process(
        *("generate", checkpoint, "x", "--max-new-tokens", "2"),
        stdout=None,
        preexec_fn=lambda: os.close(1),
    )
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, b"")
