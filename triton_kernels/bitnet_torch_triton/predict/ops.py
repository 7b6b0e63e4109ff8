"""The work of our kernels. Instructions a weight are those of their main loops' machine code."""

from __future__ import annotations

from bitnet_torch_triton.predict.gpu import Gpu
from bitnet_torch_triton.predict.launch import MATRIX_SHARE, Launch

# Per weight in the loop of a product for one to eight tokens: all, and the integer ones.
DECODE_INSTRUCTIONS, DECODE_INTEGER = 0.60, 0.50
# Tokens and outputs of a tile, and the share of the matrix units' rate that it can reach.
TILES = ((128, 256, 1.0), (64, 256, 0.9), (32, 256, 0.75), (16, 256, 0.6))
BF16 = 2


def product(m: int, n: int, k: int, gpu: Gpu, name: str = "product") -> Launch:
    """Return the ternary product of m tokens with (n, k) weights."""
    nbytes = n * k / 4 + m * k + BF16 * m * n
    if m <= 8:
        weights = n * k
        return Launch(
            name,
            nbytes,
            instructions=weights * DECODE_INSTRUCTIONS,
            integer=weights * DECODE_INTEGER,
        )
    ops = 2.0 * m * n * k
    return Launch(name, nbytes, int8_ops=ops, share=matrix_share(m, n, gpu))


def matrix_share(m: int, n: int, gpu: Gpu) -> float:
    """Return the share of the matrix units' rate that the best tile leaves for (m, n) outputs.

    A last wave of programs that fills half of the multiprocessors takes as long as a full one;
    what a grid smaller than the GPU leaves idle, splitting K gives back but for a tenth.
    """
    best = 0.0
    for rows, columns, quality in TILES:
        programs = -(-m // rows) * -(-n // columns)
        used = m * n / (programs * rows * columns)
        waves = -(-programs // gpu.sms)
        filled = programs / (waves * gpu.sms) if programs > gpu.sms else 0.9
        best = max(best, MATRIX_SHARE * quality * used * filled)
    return best


def float_product(m: int, n: int, k: int, name: str = "bf16 product") -> Launch:
    """Return a bfloat16 product of m tokens with (n, k) weights."""
    return Launch(name, BF16 * (n * k + m * k + m * n), bf16_ops=2.0 * m * n * k)


def float_head(m: int, n: int, k: int) -> Launch:
    """Return the bfloat16 head of a few tokens, which adds up float32 on the cores.

    Its kernel takes 3 instructions a weight for one token, 13 for eight: weights are widened once,
    and a token takes a fused product and a widening that its rows share.
    """
    nbytes = BF16 * (n * k + m * k) + 4 * m * n
    return Launch("bf16 head", nbytes, instructions=n * k * (1.6 + 1.4 * m))


def int8_head(m: int, n: int, k: int) -> Launch:
    """Return the int8 head of a few tokens: 0.5 instructions a weight for one, 3.2 for eight."""
    nbytes = n * k + m * k + 4 * m * n
    return Launch("int8 head", nbytes, instructions=n * k * (0.1 + 0.4 * m))


def row_op(name: str, m: int, read: float, written: float, reductions: int = 2) -> Launch:
    """Return a kernel over m rows that reads and writes so many bytes of each.

    The rows of a decode step were written a moment ago, so they come from the cache.
    """
    return Launch(name, m * (read + written), reductions=reductions, cached=m <= 64)


def pointwise(name: str, nbytes: float) -> Launch:
    """Return a kernel that reads and writes without a reduction."""
    return Launch(name, nbytes, cached=nbytes < 1e6)


def attention(m: int, context: int, heads: int, kv_heads: int, d: int, nbytes: int) -> Launch:
    """Return the attention of m tokens to ``context`` keys of ``nbytes`` bytes an element.

    Its programs split the keys, and the last of them to finish adds up the parts: two more
    latencies, and no second launch.
    """
    cache = 2.0 * context * kv_heads * d * nbytes
    ops = 4.0 * m * context * heads * d
    # float32 sums without matrix units, two operations an instruction.
    return Launch("attention", cache, depth=4, instructions=ops / 2, reductions=2)
