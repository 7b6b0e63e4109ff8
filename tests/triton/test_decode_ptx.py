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
from tests.triton.aot import KERNELS
from tests.triton.conftest import decode_kernels
from tests.triton.ptx.machine import run
from tests.triton.ptx.memory import GlobalMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


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
    """Return the number of cases in which a ternary kernel had the reference's bits."""
    agreed = 0
    for entry, text in kernels:
        if entry["kernel"] not in KERNELS:
            continue
        count = len(entry["signature"][2])
        with_bias = count > 1
        for i, (k, rows) in enumerate(sizes):
            rows = (rows * count)[:count]
            for m in tokens(i) if "few" in entry["kernel"] else (1,):
                case = Case(m, k, rows, DTYPES[entry["x_dtype"]], with_bias)
                assert case.agrees(entry, text, m, k, rows), (entry["variant"], m, k, rows)
                agreed += 1
    return agreed


def test_compiled_decode_kernels_have_the_references_bits(decode_code):
    # Two, eight, and another number of tokens in turn.
    assert agree_on(decode_code, lambda i: (2, 8, 3 + i), SIZES) == 4 * 5 + 4 * 5 * 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("f", ["fp16", "fp32"])
def test_compiled_decode_kernels_have_the_references_bits_for_all_tokens(f, tmp_path):
    sizes = (*SIZES, (1, (1,)), (16, (65,)), (6912, (70,)), (12_300, (5, 130)))
    kernels = decode_kernels(f, tmp_path, tmp_path)
    assert agree_on(kernels, lambda i: range(2, 9), sizes) == 4 * 9 + 4 * 9 * 7


# Rows before, at and behind a turn; one row, and rows of several programs.
@pytest.mark.parametrize(("k", "n"), [(16, 1), (512, 16), (1552, 35)])
def test_the_compiled_int8_head_has_the_references_bits(decode_code, k, n):
    heads = [pair for pair in decode_code if pair[0]["kernel"] == "_int8_few_kernel"]
    assert [entry["constants"]["TOKENS"] for entry, _ in heads] == [1, 8]
    for entry, text in heads:
        for m in (1,) if entry["constants"]["TOKENS"] == 1 else (5, 8):
            memory = GlobalMemory()
            x, h = (torch.randint(-127, 128, (rows, k), dtype=torch.int8) for rows in (m, n))
            given = (x, torch.rand(m), h, torch.rand(n))
            want = ops.int8_linear.impls["reference"](*given, torch.bfloat16)
            placed = [memory.place(tensor.numpy()) for tensor in given]
            y = memory.place(np.zeros_like(integers(want)), written=True)
            programs = -(-n // entry["constants"]["BLOCK_N"])
            run(text, [*placed, y, m, n, k // 16], memory, programs, entry["shared"])
            got = torch.from_numpy(memory.written(y, integers(want))).view(torch.bfloat16)
            assert same_bits(got, want), (entry["variant"], m)


def test_the_largest_sums_are_exact(decode_code):
    for entry, text in decode_code:
        if entry["kernel"] in KERNELS and len(entry["signature"][2]) == 1:
            assert largest_sum(entry, text) == [2.0**24, -(2.0**24)]


def largest_sum(entry, text):
    k, memory = 131_072, GlobalMemory()
    m = 8 if "few" in entry["kernel"] else 1
    x, one = np.full((m, k), -128, np.int8), np.ones(m, np.float32)
    t = np.stack([np.full(k, -1, np.int8), np.full(k, 1, np.int8)])
    like = np.zeros((m, 2), np.int16)
    placed = [memory.place(array) for array in (x, one, planar(t), one[:1])]
    y = memory.place(like, written=True)
    sizes = [*([m] if m > 1 else []), k // 16, k // 256]
    run(text, [*placed, 0, y, 2, *sizes], memory, 1, entry["shared"])
    out = torch.from_numpy(memory.written(y, like)).view(torch.bfloat16)
    assert bool((out == out[0]).all())
    return out[0].tolist()
