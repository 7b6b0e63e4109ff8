"""A run that is killed and continued ends in the bits of one that was left alone."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bitnet_torch.cli.main import main
from bitnet_torch.errors import CheckpointError, ConfigurationError
from bitnet_torch.train import train, trainer
from bitnet_torch.train.checkpoint import list_checkpoints
from tests.bits import same_bits
from tests.diagnostics.logging_state import restored_logging
from tests.train.plays import tiny_config, tiny_values

ROOT = Path(__file__).parents[2]
# The tiny run has 24 steps, a checkpoint every 4, and turns ternary at 12. The child kills
# itself at a chosen line, which no timer could hit; otherwise it is `bitnet`, with its arguments.
CHILD = """
import os, signal, sys
from bitnet_torch.cli.main import main
from bitnet_torch.train import checkpoint, metrics, trainer

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, number, then=die):
    original, calls = getattr(owner, name), []
    def wrapper(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            then(*args, **kwargs)
        return original(*args, **kwargs)
    setattr(owner, name, wrapper)

def half_a_line(log, row):
    log._file.write(b'{"step": 7, "lo')
    die()

moment = sys.argv.pop(1)
if moment == "before the first checkpoint":
    at_call(trainer, "_step", 3)
elif moment == "in the middle of a row of metrics":
    at_call(metrics.MetricsLog, "write", 8, half_a_line)
elif moment == "with a checkpoint written aside but not renamed":
    at_call(os, "fsync", 5)
elif moment == "between a checkpoint and the removal of old ones":
    at_call(checkpoint, "list_checkpoints", 4)
elif moment == "in the middle of a ternary step":
    at_call(trainer.torch.nn.utils, "clip_grad_norm_", 15)
elif moment == "before the export":
    at_call(sys.modules["bitnet_torch.train.finish"], "export", 1)
sys.exit(main())
"""
MOMENTS = [
    "before the first checkpoint",
    "in the middle of a row of metrics",
    "with a checkpoint written aside but not renamed",
    "between a checkpoint and the removal of old ones",
    "in the middle of a ternary step",
    "before the export",
]


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    return tmp_path_factory.mktemp("plays")


@pytest.fixture(scope="module")
def uninterrupted(plays, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    train(tiny_config(plays, out))
    return out


def write_toml(path, plays, out):
    """Write the tiny run as the file that a user would."""
    lines = []
    for section, values in tiny_values(plays, out).items():
        # What JSON and TOML write for numbers, strings and lists is the same.
        lines += [f"[{section}]", *(f"{key} = {json.dumps(v)}" for key, v in values.items())]
    path.write_text("\n".join(lines))
    return path


def final_state(out):
    return safetensors.torch.load_file(out / "checkpoints" / "step-00000024.safetensors")


def rows(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in parsed]


def exported(out):
    with safetensors.safe_open(out / "model" / "model.safetensors", framework="pt") as file:
        names = sorted(file.keys())
        # The header lists its entries in no fixed order, so files are compared by content.
        return [(n, raw(file.get_tensor(n))) for n in names], file.metadata()


def raw(tensor):
    return (
        str(tensor.dtype),
        tuple(tensor.shape),
        bytes(tensor.reshape(-1).view(torch.uint8).numpy()),
    )


def assert_same_run(out, uninterrupted):
    got, expected = final_state(out), final_state(uninterrupted)
    assert got.keys() == expected.keys()
    assert [n for n in got if not same_bits(got[n], expected[n])] == []
    assert rows(out) == rows(uninterrupted)
    assert exported(out) == exported(uninterrupted)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_continues_to_the_same_bits(
    moment, plays, uninterrupted, tmp_path
):
    out = tmp_path / "out"
    command = ["train", "--config", str(write_toml(tmp_path / "run.toml", plays, out))]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, moment, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (out / "result.json").exists()
    with restored_logging():
        assert main([*command, "--resume"]) == 0
    assert_same_run(out, uninterrupted)
    names = [
        sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (out, uninterrupted)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("stop", [5, 12, 17])
def test_ctrl_c_finishes_the_step_saves_and_can_be_continued(
    stop, plays, uninterrupted, tmp_path, monkeypatch
):
    original = trainer._step

    def step(state, rate):
        if state.step == stop - 1 and threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        return original(state, rate)

    monkeypatch.setattr(trainer, "_step", step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {stop}; continue from"):
        train(tiny_config(plays, tmp_path))
    assert signal.getsignal(signal.SIGINT) is before
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == f"step-{stop:08d}.safetensors"
    monkeypatch.undo()
    train(tiny_config(plays, tmp_path), resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_ctrl_c_stops_at_once(plays, tmp_path, monkeypatch):
    def step(state, rate):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(plays, tmp_path))
    assert list_checkpoints(tmp_path / "checkpoints") == []


def test_a_finished_run_can_be_exported_again(plays, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "model")
    result = train(tiny_config(plays, tmp_path / "run"), resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)
    recorded = json.loads((uninterrupted / "result.json").read_text())
    assert result.held_out_bits_per_byte == recorded["held_out_bits_per_byte"]


def test_a_twin_can_share_the_first_part_of_a_run(plays, tmp_path):
    twin = {"schedule": {"qat_start": 24}}
    train(tiny_config(plays, tmp_path / "whole", **twin))
    train(tiny_config(plays, tmp_path / "ternary", run={"keep_checkpoints": 9}))
    (tmp_path / "copy" / "checkpoints").mkdir(parents=True)
    for name in ("metrics.jsonl", "checkpoints/step-00000012.safetensors"):
        shutil.copyfile(tmp_path / "ternary" / name, tmp_path / "copy" / name)
    train(tiny_config(plays, tmp_path / "copy", **twin), resume=True)
    assert_same_run(tmp_path / "copy", tmp_path / "whole")


def test_a_run_is_never_started_over_an_older_one(plays, uninterrupted):
    with pytest.raises(ConfigurationError, match="holds a run already"):
        train(tiny_config(plays, uninterrupted))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": {"seed": 5}}, "run.seed (0 in the checkpoint, 5 now)"),
        ({"run": {"threads": 2}}, "run.threads (1 in the checkpoint, 2 now)"),
        ({"optimizer": {"learning_rate": 1e-3}}, "optimizer.learning_rate (0.004 in the"),
        ({"schedule": {"qat_start": 13}}, "schedule.qat_start (12 in the checkpoint, 13 now)"),
        ({"data": {"batch": 2}}, "data.batch (4 in the checkpoint, 2 now)"),
    ],
)
def test_a_changed_setting_is_refused_by_name(plays, uninterrupted, change, says):
    with pytest.raises(ConfigurationError) as caught:
        train(tiny_config(plays, uninterrupted, **change), resume=True)
    assert says in str(caught.value)


def test_every_setting_that_differs_is_named(plays, uninterrupted):
    changed = tiny_config(plays, uninterrupted, run={"seed": 5}, data={"batch": 2})
    with pytest.raises(ConfigurationError, match=r"data\.batch.*run\.seed"):
        train(changed, resume=True)


def test_other_text_is_refused(plays, uninterrupted, tmp_path):
    config = tiny_config(tmp_path / "other", uninterrupted)
    with (tmp_path / "other" / "train.txt").open("ab") as file:
        file.write(b"one more line\n")
    with pytest.raises(ConfigurationError, match="the text itself"):
        train(config, resume=True)


def test_a_damaged_newest_checkpoint_names_itself_and_the_older_one(plays, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    older, newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-2:]
    newest.write_bytes(newest.read_bytes()[:-1000])
    config = tiny_config(plays, tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        train(config, resume=True)
    assert f"{newest} is damaged" in str(caught.value)
    assert f"delete it to continue from {older}" in str(caught.value)
    newest.unlink()
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_another_version_of_torch_is_allowed_with_a_warning(plays, tmp_path, monkeypatch, caplog):
    config = tiny_config(plays, tmp_path, schedule={"steps": 5})
    train(config)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    train(config, resume=True)
    assert "this is 9.9.9" in caplog.text
