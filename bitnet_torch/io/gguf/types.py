"""The tensor types of GGUF that this package knows: their numbers and the sizes of their blocks.

A tensor is a row-major sequence of blocks, each of which holds a fixed number of weights in a
fixed number of bytes. ``I2_S`` is a type of bitnet.cpp only, whose number 36 other programs do
not know; its blocks are followed by one float32 scale for the tensor, in 32 bytes.

Source: ggml's ``ggml.h``, gguf-py's ``constants.py`` (version 0.19), bitnet.cpp's ``ggml.h``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """One type of tensor.

    Attributes:
        name: Its name in ggml.
        number: Its number in files.
        weights: Weights in a block.
        nbytes: Bytes of a block.
        trailer: Bytes behind the blocks of a tensor.
        file_type: The number of a file whose matrices are of this type, if it can be that.
    """

    name: str
    number: int
    weights: int
    nbytes: int
    trailer: int = 0
    file_type: int | None = None

    def size(self, numel: int) -> int:
        """Return the bytes of a tensor of ``numel`` weights, a multiple of ``weights``."""
        return numel // self.weights * self.nbytes + self.trailer


TQ1_0 = BlockType("TQ1_0", 34, 256, 54, file_type=36)
TQ2_0 = BlockType("TQ2_0", 35, 256, 66, file_type=37)
I2_S = BlockType("I2_S", 36, 128, 32, trailer=32, file_type=40)
F32 = BlockType("F32", 0, 1, 4, file_type=0)
F16 = BlockType("F16", 1, 1, 2, file_type=1)
BF16 = BlockType("BF16", 30, 1, 2, file_type=32)
Q4_0 = BlockType("Q4_0", 2, 32, 18)
Q4_1 = BlockType("Q4_1", 3, 32, 20)
Q8_0 = BlockType("Q8_0", 8, 32, 34)
Q5_K = BlockType("Q5_K", 13, 256, 176)
Q6_K = BlockType("Q6_K", 14, 256, 210)

TERNARY = (TQ1_0, TQ2_0, I2_S)
FLOAT = (F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q5_K, Q6_K)
BY_NUMBER = {kind.number: kind for kind in (*TERNARY, *FLOAT)}
BY_NAME = {kind.name: kind for kind in BY_NUMBER.values()}
