"""Loading holds one tensor beside the model, one copy of the codes, and no embedding it can map."""

import json
import subprocess
import sys

import pytest

from bitnet_torch.bench.random_checkpoint import make_checkpoint
from bitnet_torch.io.tensor_file import open_tensors
from bitnet_torch.models import ModelConfig

MIB = 1 << 20
PROGRAM = """
import json, sys
import torch
import bitnet_torch as bt

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024

warm = bt.load(sys.argv[1])  # libraries, kernels and the allocator's own
warm.model(torch.zeros(1, 1, dtype=torch.int64))
del warm
before = status("RssAnon")
open("/proc/self/clear_refs", "w").write("5")
lm = bt.load(sys.argv[2])
peak, after, anonymous = status("VmHWM"), status("VmRSS"), status("RssAnon")
held = sum(t.nbytes for m in lm.model.modules() for t in m._buffers.values() if t is not None)
held += sum(p.nbytes for p in lm.model.parameters())
embedding = lm.model.model.embed_tokens.weight.nbytes
print(json.dumps([peak - after, anonymous - before, held, embedding]))
"""


def config(tied, layers, width):
    return ModelConfig(
        vocab_size=16000,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory figures of Linux")
@pytest.mark.parametrize("tied", [False, True])
def test_loading_needs_one_tensor_more_than_the_model(tmp_path, tied):
    small = make_checkpoint(tmp_path / "small", config(tied, 1, 256))
    folder = make_checkpoint(tmp_path / "large", config(tied, 30, 2048))
    with open_tensors(folder / "model.safetensors") as file:
        sizes = [file.read(name).nbytes for name in file.names]
    total = (folder / "model.safetensors").stat().st_size
    # Large enough that a second copy of the codes, or of everything, breaks every bound below.
    assert sum(sizes) - max(sizes) > max(sizes) + 2 * 64 * MIB
    command = [sys.executable, "-c", PROGRAM, str(small), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    extra, grown, held, embedding = json.loads(ended.stdout)
    assert extra <= max(sizes) + 64 * MIB
    mapped = 0 if tied else embedding
    assert held - mapped <= grown + 16 * MIB
    # The allocator may keep what a tensor passed through, but no more than that.
    assert grown <= held - mapped + max(sizes) + 64 * MIB
    # Tables and the padding of the backend's layout aside, what is held is what is stored.
    assert held <= total * 1.1
