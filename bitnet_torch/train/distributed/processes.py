"""Joining the processes that torchrun has started, and an error where one of them is lost.

A process that dies, or hangs for longer than the timeout, makes every collective of the others
fail; what they then raise is a :class:`~bitnet_torch.errors.DistributedError` that says who
noticed and after how long. torchrun ends them all and may start them again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from bitnet_torch.errors import BitNetError, CheckpointError, ConfigurationError, DistributedError

T = TypeVar("T")

_SET_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Gloo raises plain RuntimeErrors, which name its own source files.
_GLOO = "gloo/"
# Seconds for gloo's threads to let go of the last collectives; they need microseconds.
_GRACE = 0.5


@dataclass(frozen=True)
class Processes:
    """The group as one of its processes sees it.

    Attributes:
        rank: Number of this process, from 0.
        world: Number of processes.
        device: What this process computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all: prints, and writes what is written once."""
        return self.rank == 0


@contextlib.contextmanager
def process_group(timeout: float = 600.0) -> Iterator[Processes]:
    """Join the group that torchrun describes; without torchrun, be a group of one.

    CUDA devices are used where there are any, by NCCL; CPUs by gloo.

    Args:
        timeout: Seconds that a process waits for another in any collective.

    Raises:
        ConfigurationError: There is a group already, or torchrun's variables are incomplete.
        DistributedError: Another process is lost, or does not answer in time.
    """
    if dist.is_initialized():
        raise ConfigurationError("this process has joined a group already")
    device = _device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    with _named_errors(timeout):
        if _under_torchrun():
            dist.init_process_group(backend, timeout=patience)
        else:
            alone = HashStore()
            dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=patience)
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    # Not after an error: others may never come to it.
    dist.destroy_process_group()
    if backend == "gloo":
        # A thread of gloo may still have to drop a finished collective's tensors, for which it
        # takes the interpreter's lock. FSDP's caches keep the group, and so those threads, until
        # the interpreter ends, and Python 3.11 ends the process by SIGABRT where such a thread
        # asks for the lock then. Nothing tells when they are done: sleeping hands them the lock.
        time.sleep(_GRACE)


def on_first(function: Callable[[], T]) -> T:
    """Return on every process what ``function`` returns on the first; collective.

    Raises:
        BitNetError: What it raised there, on every process. An OSError becomes a CheckpointError,
            for files are what one process handles for all.
    """
    box: list[object] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            box[0] = function()
        except BitNetError as error:
            box[0] = error
        except OSError as error:
            box[0] = CheckpointError(f"{error.filename}: {error.strerror}")
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], BitNetError):
        raise box[0]
    return cast(T, box[0])


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _under_torchrun() -> bool:
    absent = [name for name in _SET_BY_TORCHRUN if name not in os.environ]
    if absent and "RANK" in os.environ:
        raise ConfigurationError(f"RANK is set, but not {', '.join(absent)}; start with torchrun")
    return not absent


@contextlib.contextmanager
def _named_errors(timeout: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, BitNetError):
            raise
        if not (isinstance(error, dist.DistError) or _GLOO in str(error)):
            raise
        rank = f"process {dist.get_rank()}" if dist.is_initialized() else "this process"
        raise DistributedError(
            f"{rank} lost another one, or waited longer than {timeout:g} s for it: {error}",
            timeout=timeout,
        ) from error
