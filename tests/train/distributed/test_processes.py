"""Joining a group, speaking for all, and losing a process."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist

from bitnet_torch.errors import ConfigurationError, DistributedError
from bitnet_torch.train.distributed import on_first, process_group
from tests.train.distributed import work


def test_without_torchrun_a_process_is_a_group_of_one():
    with process_group(5) as group:
        assert (group.rank, group.world, group.device.type) == (0, 1, "cpu")
        assert group.is_first
        assert on_first(lambda: 7) == 7
        with pytest.raises(ConfigurationError, match="joined a group already"), process_group():
            pass
    assert not dist.is_initialized()
    assert on_first(lambda: 8) == 8


def test_half_of_torchruns_variables_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigurationError, match=r"not .*MASTER_PORT"), process_group():
        pass


def test_an_absent_process_is_an_error_after_the_timeout(monkeypatch):
    settings = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in {**settings, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=r"waited longer than 1 s"), process_group(1):
        pass


def test_errors_of_ones_own_are_not_called_lost_processes():
    with pytest.raises(RuntimeError, match="of my own") as raised, process_group(5):
        raise RuntimeError("of my own")
    assert not isinstance(raised.value, DistributedError)
    dist.destroy_process_group()


def test_what_the_first_process_finds_or_raises_is_what_all_get(pair):
    for answer, refused, absent in pair.run(work.on_the_first):
        assert answer == "from 0"
        assert refused == ("ConfigurationError", "refused")
        assert absent == ("CheckpointError", "/nowhere/at/all: No such file or directory")


LATE = """
import threading, time
import torch, torch.distributed as dist
from bitnet_torch.train.distributed import process_group

class Kept:
    pass

class Late(torch.Tensor):
    def __del__(self):
        if threading.current_thread() is not threading.main_thread():
            late.set()
            time.sleep(0.1)
            print("dropped", flush=True)

late = threading.Event()
with process_group(5):
    kept = Kept()
    kept.itself, kept.group = kept, dist.group.WORLD
    del kept
    while not late.is_set():
        dist.broadcast(torch.Tensor._make_subclass(Late, torch.ones(1)), src=0)
"""


def test_the_interpreter_does_not_end_under_a_thread_that_drops_the_last_tensors():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == {"dropped"}


LOST = """
import os, signal, sys
import torch, torch.distributed as dist
from bitnet_torch.errors import DistributedError
from bitnet_torch.train.distributed import process_group

try:
    with process_group(float(sys.argv[2])) as group:
        x = torch.ones(1)
        dist.all_reduce(x)
        if group.rank == 1:
            os.kill(os.getpid(), int(sys.argv[1]))
        dist.all_reduce(x)
except DistributedError as error:
    print(error, flush=True)
    os._exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "timeout"), [(signal.SIGKILL, 60), (signal.SIGSTOP, 3)])
def test_a_process_that_dies_or_hangs_is_an_error_of_the_other(sent, timeout):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    fixed = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOST, str(int(sent)), str(timeout)],
            env={**os.environ, **fixed, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said, _ = processes[0].communicate(timeout=100)
        assert processes[0].returncode == 3
        assert f"process 0 lost another one, or waited longer than {timeout} s" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
