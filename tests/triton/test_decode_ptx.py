"""The decode kernels as compiled for sm_80, inline assembly and Gluon included, run on the CPU.

Codes past K are any, memory around every tensor is out of bounds, and each output has one writer.
"""

import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from bitnet_torch import ops
from tests.bits import same_bits
from tests.cases import codes
from tests.triton.aot import report
from tests.triton.ptx.machine import run
from tests.triton.ptx.memory import GlobalMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = ("_ternary_gemv_kernel", "_ternary_few_kernel")


def compiled(f, folder):
    """Return (entry, PTX) of every decode kernel."""
    named = [argument for name in NAMES for argument in ("--kernel", name)]
    entries = report(
        *("--arch", "sm_80", "--float", f, *named, "--save", str(folder)), cache=folder / "cache"
    )
    assert {e["kernel"] for e in entries} == set(NAMES)
    return [(e, (folder / f"sm_80-{i}.ptx").read_text()) for i, e in enumerate(entries)]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return compiled("fp32", tmp_path_factory.mktemp("ptx"))


def planar(t):
    """Return the bytes of planar64 by its drawing, with noise for the codes past K."""
    n, k = t.shape
    groups = -(-k // 256)
    code = np.random.default_rng(k).integers(0, 4, (n, groups * 256), dtype=np.uint8)
    code[:, :k] = t + 1
    plane = code.reshape(n, groups, 4, 64)
    byte = plane[:, :, 0] | plane[:, :, 1] << 2 | plane[:, :, 2] << 4 | plane[:, :, 3] << 6
    return byte.reshape(n, groups * 64)


def integers(tensor):
    """Return the bits of a float tensor as an array."""
    kind = torch.int32 if tensor.dtype == torch.float32 else torch.int16
    return tensor.contiguous().view(kind).numpy()


class Case:
    """A product of M tokens with one or several matrices, placed in memory."""

    def __init__(self, m, k, rows, dtype, with_bias):
        self.memory, self.dtype = GlobalMemory(), dtype
        x_q, x_scale = torch.randint(-128, 128, (m, k), dtype=torch.int8), torch.rand(m)
        x = self.memory.place(pad(x_q, (0, -k % 16)).numpy())
        self.arguments = [x, self.memory.place(x_scale.numpy())]
        self.outputs, biases = [], []
        for n in rows:
            t, bias = codes(n, k, n), torch.randn(n).to(dtype) if with_bias else None
            w_scale = torch.rand(n) if with_bias else torch.rand(())
            packed = ops.pack_codes.impls["reference"](t)
            want = ops.ternary_linear.impls["reference"](
                x_q, x_scale, packed, w_scale, n, dtype, bias
            )
            y = self.memory.place(np.zeros_like(integers(want)), written=True)
            self.outputs.append((y, want))
            scale = self.memory.place(w_scale.numpy())
            self.arguments += [self.memory.place(planar(t.numpy())), scale, int(with_bias), y, n]
            biases += [self.memory.place(integers(bias))] if with_bias else []
        self.arguments += biases

    def agrees(self, entry, text, m, k, rows):
        arguments = [*self.arguments, *([m] if "few" in entry["kernel"] else [])]
        programs = sum(-(-n // entry["constants"]["BLOCK_N"]) for n in rows)
        arguments += [-(-k // 16), -(-k // 256)]
        run(text, arguments, self.memory, programs, entry["shared"])
        got = [self.memory.written(y, integers(want)) for y, want in self.outputs]
        return all(
            same_bits(torch.from_numpy(bits).view(self.dtype), want)
            for bits, (_, want) in zip(got, self.outputs, strict=True)
        )


# K before, at and behind a group, a turn of one group of warps, and several turns.
SIZES = ((5, (3,)), (256, (8, 1, 9)), (700, (13, 33, 64)), (2048, (40,)), (4500, (9, 17)))


def agree_on(kernels, tokens, sizes):
    """Return the number of cases in which a kernel had the reference's bits."""
    agreed = 0
    for entry, text in kernels:
        count = len(entry["signature"][2])
        with_bias = count > 1
        for i, (k, rows) in enumerate(sizes):
            rows = (rows * count)[:count]
            for m in tokens(i) if "few" in entry["kernel"] else (1,):
                case = Case(m, k, rows, DTYPES[entry["x_dtype"]], with_bias)
                assert case.agrees(entry, text, m, k, rows), (entry["variant"], m, k, rows)
                agreed += 1
    return agreed


def test_compiled_decode_kernels_have_the_references_bits(kernels):
    # Two, eight, and another number of tokens in turn.
    assert agree_on(kernels, lambda i: (2, 8, 3 + i), SIZES) == 4 * 5 + 4 * 5 * 3


@pytest.mark.slow
@pytest.mark.parametrize("f", ["fp16", "bf16"])
def test_compiled_decode_kernels_have_the_references_bits_for_all_tokens(f, tmp_path):
    sizes = (*SIZES, (1, (1,)), (16, (65,)), (6912, (70,)), (12_300, (5, 130)))
    assert agree_on(compiled(f, tmp_path), lambda i: range(2, 9), sizes) == 4 * 9 + 4 * 9 * 7


def test_the_largest_sums_are_exact(kernels):
    for entry, text in kernels:
        if len(entry["signature"][2]) == 1:
            assert largest_sum(entry, text) == [131072 * 128.0, -131072 * 128.0]


def largest_sum(entry, text):
    k, memory = 131_072, GlobalMemory()
    m = 8 if "few" in entry["kernel"] else 1
    x, one = np.full((m, k), -128, np.int8), np.ones(m, np.float32)
    t = np.stack([np.full(k, -1, np.int8), np.full(k, 1, np.int8)])
    like = np.zeros((m, 2), np.float32)
    placed = [memory.place(array) for array in (x, one, planar(t), one[:1])]
    y = memory.place(like, written=True)
    sizes = [*([m] if m > 1 else []), k // 16, k // 256]
    run(text, [*placed, 0, y, 2, *sizes], memory, 1, entry["shared"])
    out = memory.written(y, like)
    assert (out == out[0]).all()
    return out[0].tolist()
