"""The dot product of four bytes of a register with four others: one instruction, or plain.

Which instruction an architecture has is in ``DOTS``; the interpreter has none (:func:`dot_for`).
"""

from __future__ import annotations

import triton
import triton.language as tl

# The instruction by the beginning of an architecture's name.
DOTS = {"sm_": "dp4a", "gfx9": "v_dot4_i32_i8", "gfx11": "v_dot4_i32_iu8"}


def dot_for(arch: str) -> str:
    """Return the instruction of an architecture; empty where there is none."""
    return next((name for prefix, name in DOTS.items() if arch.startswith(prefix)), "")


@triton.jit
def dot4(t, x, acc, DOT: tl.constexpr, SIGNED: tl.constexpr = False):
    """Return acc + the four products of bytes of ``t``, signed or not, and signed ones of ``x``.

    ``DOT`` is the instruction, or empty. v_dot4_i32_i8 takes both as signed, so unsigned bytes of
    ``t`` are below 128 for it.
    """
    if DOT == "dp4a":
        if SIGNED:
            return _assembled(t, x, acc, "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r")
        else:
            return _assembled(t, x, acc, "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r")
    elif DOT == "v_dot4_i32_i8":
        return _assembled(t, x, acc, "v_dot4_i32_i8 $0, $1, $2, $3", "=v,v,v,v")
    elif DOT == "v_dot4_i32_iu8":
        if SIGNED:
            with_signs: tl.constexpr = "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[1,1,0]"
            return _assembled(t, x, acc, with_signs, "=v,v,v,v")
        else:
            without: tl.constexpr = "v_dot4_i32_iu8 $0, $1, $2, $3 neg_lo:[0,1,0]"
            return _assembled(t, x, acc, without, "=v,v,v,v")
    else:
        for b in tl.static_range(4):
            byte = _signed(t, b) if SIGNED else (t >> (8 * b)) & 255
            acc += byte * _signed(x, b)
        return acc


@triton.jit
def _signed(word, b: tl.constexpr):
    return (word << (24 - 8 * b)) >> 24


@triton.jit
def _assembled(t, x, acc, ASSEMBLY: tl.constexpr, OPERANDS: tl.constexpr):
    return tl.inline_asm_elementwise(
        ASSEMBLY, OPERANDS, [t, x, acc], dtype=tl.int32, is_pure=True, pack=1
    )
