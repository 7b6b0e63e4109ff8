"""Kernels that apply inline assembly to every element; as a script, print their PTX for sm_80."""

import json
import sys

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from bitnet_torch_triton._launch import KernelConfig
from bitnet_torch_triton.aot.build import build
from bitnet_torch_triton.aot.variant import Variant
from bitnet_torch_triton.dot4 import dot4
from bitnet_torch_triton.ternary_few import _codes

BLOCK = 1024


@triton.jit
def _dot_kernel(t_ptr, x_ptr, y_ptr, BLOCK: tl.constexpr, DOT: tl.constexpr, SIGNED: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = dot4(tl.load(t_ptr + i), tl.load(x_ptr + i), i, DOT, SIGNED)
    tl.store(y_ptr + i, total)


@gluon.jit
def _codes_kernel(byte_ptr, y_ptr, BLOCK: gl.constexpr, J: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    i = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, layout=layout)
    gl.store(y_ptr + i, _codes(gl.load(byte_ptr + i), J))


def main():
    texts = {}
    for dot, signed in (("dp4a", False), ("dp4a", True), ("", False), ("", True)):
        constants = {"BLOCK": BLOCK, "DOT": dot, "SIGNED": signed}
        variant = Variant("", ("*i32", "*i32", "*i32"), constants, KernelConfig())
        texts[f"dot {dot} {signed}"] = build(_dot_kernel, variant, "", "sm_80").asm["ptx"]
    for j in range(4):
        variant = Variant("", ("*u8", "*i8"), {"BLOCK": BLOCK, "J": j}, KernelConfig())
        texts[f"codes {j}"] = build(_codes_kernel, variant, "", "sm_80").asm["ptx"]
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    main()
