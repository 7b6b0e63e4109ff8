"""A program that kills runs: ``python -m tests.train.killing PLAN``.

PLAN is a JSON file: ``root`` (of the text), ``whole`` (folder of the run that is left alone),
``warm`` (of one before it) and ``runs``: for each a folder and the moment at which it is killed.
Importing takes longer than a run, so every other run is a fork of this process.

A moment is ``{"share": s}``: at this share of all Python calls that the whole run makes, wherever
that is; or ``{"checkpoint": n, "where": w, "share": s}``: while the n-th checkpoint is saved.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
import tqdm

from bitnet_torch.train import TrainConfig, checkpoint, finish, train
from tests.train.plays import EXCERPT, tiny_values

WHERE = ("in the file", "before it is flushed", "before it is renamed", "before old ones go")


def config(root: str, out: str) -> TrainConfig:
    """Return a run whose every kind of state matters: moments, scales, warm-up, telemetry."""
    values = tiny_values(Path(root), Path(out))
    # Most of such a run would be its last evaluation.
    (Path(root) / "held.txt").write_bytes(EXCERPT.read_bytes()[-200:])
    values["model"]["num_hidden_layers"] = 1
    values["ternary"] = {"quantizer": "lsq", "warmup": 3}
    values["schedule"] = {"steps": 16, "qat_start": 7, "warmup": 2}
    values["run"] |= {"checkpoint_every": 2, "keep_checkpoints": 2, "eval_windows": 2}
    return TrainConfig.from_dict(values)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(limit: int | None) -> list[int]:
    """Count Python calls from now on, and die at the ``limit``-th."""
    calls = [0]

    def seen(frame: object, event: str, argument: object) -> None:
        if event == "call":
            calls[0] += 1
            if calls[0] == limit:
                die()

    sys.setprofile(seen)
    return calls


def die_while_saving(number: int, where: str, share: float) -> None:
    """Die while the ``number``-th checkpoint is saved."""
    started = [0]
    save = checkpoint.save_checkpoint

    def counted(*args, **kwargs):
        started[0] += 1
        return save(*args, **kwargs)

    sys.modules["bitnet_torch.train.state"].save_checkpoint = counted
    write, fsync, replace, unlink = Path.write_bytes, os.fsync, Path.replace, Path.unlink

    def now(path: object) -> bool:
        return started[0] == number and "step-" in str(path)

    def part(self, content):
        if where == "in the file" and now(self):
            write(self, content[: int(len(content) * share)])
            die()
        return write(self, content)

    def before(name, original):
        def call(self, *args, **kwargs):
            flush = name == "before it is flushed" and started[0] == number
            if where == name and (flush or now(self)):
                die()
            return original(self, *args, **kwargs)

        return call

    Path.write_bytes = part
    os.fsync = before("before it is flushed", fsync)
    Path.replace = before("before it is renamed", replace)
    Path.unlink = before("before old ones go", unlink)


def forked(task) -> int:
    """Run ``task`` in a fork and return the status that it ended with, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # What escapes would go on as a second parent.
    status = 1
    try:
        task()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    for name in ("draw_curve", "draw_telemetry"):
        setattr(finish, name, lambda *_: None)
    sys.modules["bitnet_torch.train.state"].git_commit = lambda _: None
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0
    # In this process: the forks find everything imported. It must not have started a thread,
    # which a fork would not have.
    train(config(plan["root"], plan["warm"]))
    calls = count_calls(None)
    train(config(plan["root"], plan["whole"]))
    sys.setprofile(None)
    total, statuses = calls[0], {}
    for run in plan["runs"]:
        out, moment = run["out"], run["moment"]

        def killed(out=out, moment=moment) -> None:
            if "where" in moment:
                die_while_saving(moment["checkpoint"], moment["where"], moment["share"])
            else:
                count_calls(int(moment["share"] * total))
            train(config(plan["root"], out))

        statuses[out] = [forked(killed), sorted(p.name for p in Path(out).glob("checkpoints/*"))]
        statuses[out].append(forked(lambda out=out: train(config(plan["root"], out), resume=True)))
    threads = len(list(Path("/proc/self/task").iterdir()))
    print(json.dumps({"statuses": statuses, "threads": threads}))


if __name__ == "__main__":
    main()
