"""A run that is killed at twenty seeded moments, and one whose disk is full."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from bitnet_torch.train.checkpoint import list_checkpoints
from tests.bits import same_bits
from tests.train.killing import WHERE
from tests.train.plays import write_plays

ROOT = Path(__file__).parents[2]
SEED = 20261126


def moments():
    """Return 12 moments anywhere in the run and 8 while one of its 8 checkpoints is saved."""
    draw = random.Random(SEED)
    anywhere = [{"share": draw.random()} for _ in range(12)]
    saving = [
        {"checkpoint": draw.randint(3, 8), "where": WHERE[i % 4], "share": draw.random()}
        for i in range(8)
    ]
    return anywhere + saving


def final_state(out):
    return safetensors.torch.load_file(list_checkpoints(out / "checkpoints")[-1])


def rows(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "tokens_per_second"} for x in lines]


def assert_same_run(out, whole):
    got, want = final_state(out), final_state(whole)
    assert got.keys() == want.keys()
    assert [name for name in want if not same_bits(got[name], want[name])] == []
    assert rows(out) == rows(whole)
    bits = [
        json.loads((o / "result.json").read_text())["held_out_bits_per_byte"] for o in (out, whole)
    ]
    assert bits[0] == bits[1]
    names = [sorted(p.name for p in (o / "checkpoints").iterdir()) for o in (out, whole)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_run_killed_at_twenty_seeded_moments_ends_in_the_bits_of_one_left_alone(tmp_path):
    root, whole = write_plays(tmp_path / "plays"), tmp_path / "whole"
    runs = [
        {"out": str(tmp_path / f"run-{i}"), "moment": moment} for i, moment in enumerate(moments())
    ]
    folders = {"root": str(root), "whole": str(whole), "warm": str(tmp_path / "warm")}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({**folders, "runs": runs}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killing", str(plan)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["threads"] == 1
    left = set()
    for run in runs:
        killed, names, continued = report["statuses"][run["out"]]
        assert (killed, continued) == (-signal.SIGKILL, 0), (run, done.stderr)
        assert_same_run(Path(run["out"]), whole)
        left.add(tuple(names))
    # The moments are no twenty times the same one, and some left a file half written.
    assert len(left) > 5
    assert any(name.endswith(".partial") for names in left for name in names)


@contextlib.contextmanager
def small_disk(folder, kib):
    """Mount a file system of ``kib`` KiB; yields a function that changes its size, or None.

    Mounting needs a right that not every machine gives; without it None is yielded.
    """
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(options, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False

    def resize(size):
        command = ["mount", "-o", f"remount,size={size}k", str(folder)]
        subprocess.run(command, check=True)

    try:
        yield resize if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def write_config(path, root, out):
    path.write_text(
        f"""
[data]
root = "{root}"
files = "*.txt"
held_out = ["held.txt"]
context = 32
batch = 4
[model]
vocab_size = 256
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 4
max_position_embeddings = 32
tie_word_embeddings = true
[schedule]
steps = 12
qat_start = 6
warmup = 2
[run]
out = "{out}"
threads = 1
log_every = 1
eval_every = 6
eval_windows = 2
checkpoint_every = 2
keep_checkpoints = 2
"""
    )
    return path


def cli(*arguments, limit=None):
    """Run `bitnet` in a process whose files may have ``limit`` bytes."""

    def set_limit():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code = "import sys; from bitnet_torch.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=set_limit,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    root = write_plays(folder / "plays")
    done = cli("train", "--config", write_config(folder / "run.toml", root, folder / "out"))
    assert done.returncode == 0, done.stderr
    return root, folder / "out"


def one_error(done):
    """Return the only line of stderr that speaks of an error; there is no traceback."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.slow
def test_a_full_disk_stops_with_one_error_and_the_checkpoint_before_it_intact(whole_run, tmp_path):
    root, whole = whole_run
    size = list_checkpoints(whole / "checkpoints")[-1].stat().st_size
    with small_disk(tmp_path / "disk", kib=(2 * size + size // 2) // 1024) as resize:
        out = tmp_path / "disk" / "out"
        config = write_config(tmp_path / "run.toml", root, out)
        # Room for two checkpoints; where no file system can be mounted, for no whole one.
        limit = None
        if resize is None:
            limit = size - 1
        done = cli("train", "--config", config, limit=limit)
        message = one_error(done)
        assert "could not be written" in message
        assert "No space left on device" in message or "File too large" in message
        kept = list_checkpoints(out / "checkpoints")
        assert str(kept[-1]) in message if kept else "there is no earlier one" in message
        assert [p.name for p in (out / "checkpoints").iterdir() if p not in kept] == []
        if resize is not None:
            assert len(kept) == 2
            resize(64 * size // 1024)
        done = cli("train", "--config", config, "--resume")
        assert done.returncode == 0, done.stderr
        assert_same_run(out, whole)


def test_metrics_that_cannot_be_written_are_one_error(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from bitnet_torch.train.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]))
log.write({"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
try:
    log.write({"step": 2, "loss": 1.0})
finally:
    log.close()
"""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.count("Traceback") == 2
    assert (
        f"CheckpointError: metrics file {path} could not be written: File too large" in done.stderr
    )
    assert path.read_text().splitlines()[0] == json.dumps({"step": 1})


def test_the_moments_are_twenty_and_eight_of_them_are_while_saving():
    drawn = moments()
    assert len(drawn) == 20
    assert sum("where" in moment for moment in drawn) == 8
    assert {moment["where"] for moment in drawn if "where" in moment} == set(WHERE)
    assert os.name == "posix"
