"""Two processes that answer to the tests: starting them costs seconds, so it is done once."""

import contextlib
import multiprocessing
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

WORLD = 2
# Of a collective, and of an answer: generous, for the machine may be busy.
PATIENCE = timedelta(seconds=60)


class Pair:
    """Processes of rank 0 and 1 in one gloo group, which run functions of a module together."""

    def __init__(self, folder):
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(WORLD)]
        self._ends = [end for end, _ in pipes]
        self.processes = [
            context.Process(target=_serve, args=(rank, str(folder / "store"), pipes[rank][1]))
            for rank in range(WORLD)
        ]
        for process, (_, far_end) in zip(self.processes, pipes, strict=True):
            process.start()
            far_end.close()

    def run(self, function, *arguments):
        """Return what ``function(rank, *arguments)`` returned on each rank."""
        for end in self._ends:
            end.send((function, arguments))
        answers = [self._answer(rank) for rank in range(WORLD)]
        for rank, (ok, value) in enumerate(answers):
            if not ok:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
        return [value for _, value in answers]

    def close(self):
        for end in self._ends:
            with contextlib.suppress(BrokenPipeError):
                end.send(None)
        for process in self.processes:
            process.join(PATIENCE.total_seconds())
            process.kill()

    def _answer(self, rank):
        if not self._ends[rank].poll(2 * PATIENCE.total_seconds()):
            raise RuntimeError(f"rank {rank} does not answer")
        return self._ends[rank].recv()


def _serve(rank, store, end):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what is allocated, as in the other tests
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=PATIENCE
    )
    while (message := end.recv()) is not None:
        function, arguments = message
        try:
            answer = True, function(rank, *arguments)
        except Exception:  # noqa: BLE001 - the test's process raises it
            answer = False, traceback.format_exc()
        end.send(answer)
    dist.destroy_process_group()
