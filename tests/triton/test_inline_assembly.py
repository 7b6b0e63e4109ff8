"""Inline assembly against plain arithmetic, over the whole table of bytes, as compiled PTX."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.triton.aot import python
from tests.triton.ptx.machine import run
from tests.triton.ptx.memory import GlobalMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")

SCRIPT = Path(__file__).parent / "table_kernels.py"
BLOCK = 1024


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    result = python(str(SCRIPT), cache=tmp_path_factory.mktemp("cache"))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def computed(text, inputs, like):
    """Return what a kernel without shared memory makes of its inputs."""
    memory = GlobalMemory()
    addresses = [memory.place(array) for array in inputs]
    y = memory.place(np.zeros_like(like), written=True)
    run(text, [*addresses, y], memory, like.size // BLOCK, 0)
    return memory.written(y, like)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dot", ["dp4a", ""])
def test_a_dot_product_is_right_for_every_pair_of_bytes_in_every_place(texts, dot, signed):
    # In each place of a word every byte of codes meets every byte of activations.
    t, x = np.divmod(np.arange(1 << 16, dtype=np.uint32), 256)
    place = np.arange(4)[:, None]
    t, x = ((t + 37 * place) % 256).astype(np.uint8), ((x + 101 * place) % 256).astype(np.uint8)
    words = [np.ascontiguousarray(b.T).view(np.int32)[:, 0] for b in (t, x)]
    codes = t.view(np.int8) if signed else t
    want = (codes.astype(np.int32) * x.view(np.int8)).sum(0, dtype=np.int32)
    want += np.arange(1 << 16, dtype=np.int32)
    assert np.array_equal(computed(texts[f"dot {dot} {signed}"], words, want), want)


@pytest.mark.parametrize("j", range(4))
def test_codes_are_taken_out_of_every_byte_in_every_place(texts, j):
    byte = np.concatenate([np.roll(np.arange(256, dtype=np.uint8), shift) for shift in range(4)])
    want = (((byte >> (2 * j)) & 3) << (2 * (j % 2))).astype(np.int8)
    assert np.array_equal(computed(texts[f"codes {j}"], [byte], want), want)
