"""The distributed example under torchrun: two processes, one, and one that is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import bitnet_torch as bt
from tests.train.plays import tiny_values

SCRIPT = Path(__file__).parents[2] / "examples" / "train_distributed.py"
STEPS, SWITCH = 6, 3
# Of one start: it takes a few seconds, more on a busy machine.
PATIENCE = 110


def preset(folder):
    values = tiny_values(folder / "text", folder / "run")
    values["model"]["intermediate_size"] = 52  # no multiple of 8: packed rows are uneven
    values["schedule"] |= {"steps": STEPS, "qat_start": SWITCH, "warmup": 2}
    values["run"] |= {"checkpoint_every": 2}
    path = folder / "run.toml"
    with path.open("w") as file:
        for section, keys in values.items():
            lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
            file.write("\n".join([f"[{section}]", *lines, ""]))
    return path


def command(processes, config, engine, out, *more):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    arguments = ["--config", str(config), "--engine", engine, "--out", str(out), *more]
    return [sys.executable, *launcher, str(SCRIPT), *arguments]


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(out):
    rows = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE)
def test_two_processes_have_the_losses_of_one_and_its_model(tmp_path):
    config = preset(tmp_path)
    outs = {engine: tmp_path / engine for engine in ("fsdp", "ddp")}
    for engine, out in outs.items():
        said = run(2, config, engine, out)
        assert ("layers gather 2,016 bytes in place of 32,256" in said) == (engine == "fsdp")
    alone = tmp_path / "one"
    run(1, config, "ddp", alone)
    for out in outs.values():
        assert losses(out) == pytest.approx(losses(alone), rel=1e-6)
        assert len(losses(out)) == STEPS
        assert bt.load(out / "model").generate("To be", max_new_tokens=4, temperature=0)
    # Two processes sum the same two gradients, replicated or sharded; only the norm differs.
    assert losses(outs["fsdp"]) == pytest.approx(losses(outs["ddp"]), rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE)
def test_a_killed_process_ends_the_run_and_any_number_continues_it(tmp_path):
    config, out = preset(tmp_path), tmp_path / "run"
    process = subprocess.Popen(
        command(2, config, "fsdp", out, "--timeout", "60"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 4"):  # the second checkpoint is whole
            break
    workers = psutil.Process(process.pid).children()
    os.kill(workers[-1].pid, signal.SIGKILL)
    rest, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "exitcode: -9" in stderr or "Signal 9 (SIGKILL)" in stderr
    kept = losses(out)
    if len(kept) < STEPS:
        # One process goes on, on what two have written.
        run(1, config, "fsdp", out, "--resume")
    else:
        assert f"step {STEPS}" in rest
    rows = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEPS
    alone = tmp_path / "one"
    run(1, config, "ddp", alone)
    by_step = {row["step"]: row["loss"] for row in rows}
    assert list(by_step.values()) == pytest.approx(losses(alone), rel=1e-6)
