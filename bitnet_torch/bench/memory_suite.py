"""``bitnet bench memory``: the bytes of a model, on paper and in a process of its own.

The peak of a process is asked of the operating system, in a child that does nothing but
load the checkpoint and generate. What Python and PyTorch take before that is reported as a row
of its own, not subtracted. Memory that is the process's alone is told beyond what PyTorch has
when it is imported, beside what must be there: weights, heads, keys and values.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bitnet_torch.bench.environment import Environment
from bitnet_torch.bench.row import Quantity, Reached, Row, Subject
from bitnet_torch.errors import CheckpointError
from bitnet_torch.generate import load
from bitnet_torch.io.layout import WEIGHTS_FILE
from bitnet_torch.io.loading import read_config
from bitnet_torch.models import CausalLM
from bitnet_torch.nn import PackedBitLinear

# The child prints peaks as it goes.
_CHILD = """
import json, sys
import psutil, torch
private = lambda: psutil.Process().memory_full_info().uss
bare = private()
from bitnet_torch.memory.process import peak_resident_bytes
from bitnet_torch.generate import load
peaks = {"import": peak_resident_bytes()}
torch.set_num_threads(int(sys.argv[2]))
lm = load(sys.argv[1])
peaks["load"] = peak_resident_bytes()
lm.generate(torch.zeros(8, dtype=torch.int64), max_new_tokens=int(sys.argv[3]))
peaks["generate"] = peak_resident_bytes()
peaks["private"] = private() - bare
held = [*lm.model.parameters(), *lm.model.buffers()]
head = 0 if lm._head is None else lm._head.nbytes
tokens = 7 + int(sys.argv[3])
cache = lm.model.new_cache(1, tokens).storage.nbytes
peaks["held"] = sum(t.nbytes for t in held) + head + cache
print(json.dumps(peaks))
"""


def memory_rows(
    folder: str | os.PathLike[str], environment: Environment, new_tokens: int = 8
) -> list[Row]:
    """Measure one checkpoint.

    Args:
        folder: The checkpoint.
        environment: Of the run.
        new_tokens: What the child generates, after 8 tokens of prompt.

    Raises:
        CheckpointError: The folder is no checkpoint, or the child could not run it.
    """
    path = Path(folder)
    # What is wrong with the folder is said by this process, not through the child's last line.
    read_config(path)
    peaks = _peaks(path, environment.threads, new_tokens)
    model = load(path).model
    layers = [m for m in model.modules() if isinstance(m, PackedBitLinear)]
    weights = sum(m.in_features * m.out_features for m in layers)
    file_bytes = (path / WEIGHTS_FILE).stat().st_size
    packed = sum(m.prepacked.nbytes + m.weight_scale.nbytes for m in layers)
    rows = [
        ("ternary layers, latent", "float32", 4 * weights, None),
        ("ternary layers, packed", environment.backend, packed, weights // 4),
        ("peak after import", "process", peaks["import"], None),
        ("peak after load", "process", peaks["load"], file_bytes),
        ("peak after generate", "process", peaks["generate"], file_bytes),
        ("private beyond PyTorch", "process", peaks["private"], peaks["held"]),
    ]
    return [_row(model, environment, *row) for row in rows]


def _row(
    model: CausalLM, environment: Environment, op: str, who: str, count: int, least: int | None
) -> Row:
    config = model.config
    subject = Subject(
        suite="memory",
        op=op,
        candidate=who,
        baseline="",
        m=0,
        k=config.hidden_size,
        n=0,
        dtype=str(model.dtype).removeprefix("torch."),
        buffers="",
        layers=config.num_hidden_layers,
    )
    value = Quantity("bytes", float(count), float(count), float(count), 1)
    # Codes cannot take less than 2 bits each, a process not less than the file or what it holds.
    whole = "held" if op.startswith("private") else "file"
    limit = "2 bits" if who == environment.backend else whole
    reached = None if not least else Reached(limit, float(least), least / count)
    return Row(subject, value, "counted", environment, reached=reached)


def _peaks(folder: Path, threads: int, new_tokens: int) -> dict[str, int]:
    command = [sys.executable, "-c", _CHILD, str(folder), str(threads), str(new_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(f"a process could not load and run {folder}: {reason}")
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks
