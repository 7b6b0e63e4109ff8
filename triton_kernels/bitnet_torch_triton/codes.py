"""Codes out of packed bytes, four at a time, in the registers of a product's operand.

A byte holds the codes t + 1 of four rows. Written plainly, plane J of a tile of bytes is
``(byte >> 2J) & 3``, which is compiled byte by byte; on a register of four bytes the same is a
shift and a mask, for four codes. That takes inline assembly, which exists for NVIDIA only and
not in the interpreter, so there are four forms of one thing, and a product is told which:

==========  ====================================================  =======================
form        a code is                                             where
==========  ====================================================  =======================
``SIGNED``  t, bytewise                                           AMD: its compiler makes
                                                                  broken code of assembly
                                                                  on int8
``WORDS``   t + 1, by assembly on four bytes                      NVIDIA
``APART``   the same, the activations summed in a loop of their   sm_100, which holds them
            own                                                   out of reach of registers
``TWIN``    t + 1, bytewise: the plain twin of ``WORDS``          the interpreter
==========  ====================================================  =======================

With t + 1 a product is too large by the sum of the activations, sum_k x (t + 1) = sum_k x t +
sum_k x. :func:`add_each` adds that sum up beside the product, by one ``dp4a`` for four activations.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIGNED = tl.constexpr(0)
WORDS = tl.constexpr(1)
TWIN = tl.constexpr(2)
APART = tl.constexpr(3)


def form_for(arch: str) -> int:
    """Return the form that products use on an architecture, or in the ``"interpreter"``."""
    if arch.startswith("sm_"):
        # From sm_100 on, but for the sm_120 of workstations, products read operands from a memory
        # of their own, whose layout a thread could only read byte by byte.
        form: int = APART.value if arch.startswith("sm_10") else WORDS.value
        return form
    other: int = (TWIN if arch == "interpreter" else SIGNED).value
    return other


@triton.jit
def plane(byte, J: tl.constexpr, FORM: tl.constexpr):
    """Return the codes of plane ``J`` of uint8 ``byte``, as int8."""
    if FORM % 2:  # WORDS and APART
        if J == 0:
            return _words(byte, "and.b32 $0, $1, 0x03030303;")
        elif J == 1:
            return _words(byte, "{ .reg .b32 t; shr.u32 t, $1, 2; and.b32 $0, t, 0x03030303; }")
        elif J == 2:
            return _words(byte, "{ .reg .b32 t; shr.u32 t, $1, 4; and.b32 $0, t, 0x03030303; }")
        else:
            return _words(byte, "{ .reg .b32 t; shr.u32 t, $1, 6; and.b32 $0, t, 0x03030303; }")
    elif FORM == TWIN:
        return ((byte >> (2 * J)) & 3).to(tl.int8)
    else:
        return ((byte >> (2 * J)) & 3).to(tl.int8) - 1


@triton.jit
def _words(byte, ASSEMBLY: tl.constexpr):
    return tl.inline_asm_elementwise(ASSEMBLY, "=r,r", [byte], dtype=tl.int8, is_pure=True, pack=4)


@triton.jit
def add_each(sums, x, FORM: tl.constexpr):
    """Return ``sums`` + ``x`` (int32 and int8), or other numbers whose total is that of these.

    As assembly four neighbours are added to the first of their sums, and 0 stays in the others.
    """
    if FORM % 2:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $4, 0x01010101, $5; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;",
            "=r,=r,=r,=r,r,r,r,r,r",
            [x, sums],
            dtype=tl.int32,
            is_pure=True,
            pack=4,
        )
    else:
        return sums + x.to(tl.int32)
