"""The launches of a decode step, in the order of bitnet_torch/models, and its floor in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_torch_triton.predict import ops
from bitnet_torch_triton.predict.gpu import Gpu
from bitnet_torch_triton.predict.launch import Launch, microseconds
from bitnet_torch_triton.predict.ops import BF16


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder: those of the published 2B-4T model."""

    layers: int = 30
    hidden: int = 2560
    inner: int = 6912
    heads: int = 20
    kv_heads: int = 5
    head_dim: int = 128
    vocab: int = 128256

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(N, K) of the products of a layer, fused as they are launched."""
        kv = 2 * self.kv_heads * self.head_dim
        return (
            (self.heads * self.head_dim + kv, self.hidden),
            (self.hidden, self.heads * self.head_dim),
            (2 * self.inner, self.hidden),
            (self.hidden, self.inner),
        )


MODEL = Sizes()


def layer_launches(size: Sizes, m: int, context: int, gpu: Gpu) -> list[Launch]:
    """Return the launches of one decoder layer for m tokens at the end of ``context`` keys."""
    d, inner = size.hidden, size.inner
    qkv, o, gate_up, down = size.matrices
    kv = 2 * size.kv_heads * size.head_dim
    return [
        ops.row_op("norm, quantise", m, BF16 * d, d),
        ops.product(m, *qkv, gpu, "q, k, v"),
        ops.pointwise("rotate, write cache", 2 * BF16 * m * (d + kv)),
        ops.attention(m, context, size.heads, size.kv_heads, size.head_dim, BF16),
        ops.row_op("sub-norm, quantise", m, BF16 * d, d),
        ops.product(m, *o, gpu, "o"),
        ops.pointwise("add", 3 * BF16 * m * d),
        ops.row_op("norm, quantise", m, BF16 * d, d),
        ops.product(m, *gate_up, gpu, "gate, up"),
        ops.row_op("gate, sub-norm, quantise", m, 2 * BF16 * inner, inner),
        ops.product(m, *down, gpu, "down"),
        ops.pointwise("add", 3 * BF16 * m * d),
    ]


def outer_launches(size: Sizes, m: int, head: str) -> list[Launch]:
    """Return what stands around the layers: positions, tables, embedding, last norm, head."""
    d, vocab = size.hidden, size.vocab
    before = [
        ops.pointwise(name, BF16 * m * d)
        for name in (
            "positions",
            "positions + start",
            "positions - first",
            "positions from 0",
            "cosines",
            "sines",
            "embedding",
        )
    ]
    last = [ops.row_op("last norm", m, BF16 * d, BF16 * d), ops.pointwise("cache length", 8)]
    if head == "float":
        heads = [ops.float_head(m, vocab, d)]
    else:
        heads = [ops.row_op("quantise", m, BF16 * d, d), ops.int8_head(m, vocab, d)]
    return [*before, *last, *heads]


def decode_launches(
    gpu: Gpu, context: int = 128, head: str = "float", m: int = 1, size: Sizes = MODEL
) -> list[Launch]:
    """Return every launch of one decode step.

    Args:
        gpu: Where it runs, which decides how tiles fill it.
        context: Keys of each sequence.
        head: ``"float"`` or ``"int8"``.
        m: Sequences.
        size: The model's.
    """
    layer = layer_launches(size, m, context, gpu)
    return [*(layer * size.layers), *outer_launches(size, m, head)]


def decode_us(
    gpu: Gpu, context: int = 128, head: str = "float", m: int = 1, size: Sizes = MODEL
) -> float:
    """Return the predicted time of a decode step in one graph; arguments as before."""
    return microseconds(decode_launches(gpu, context, head, m, size), gpu)


def floor_us(gpu: Gpu, head: str = "float", size: Sizes = MODEL) -> float:
    """Return the time to read the weights once at the data sheet's bandwidth."""
    ternary = size.layers * sum(n * k for n, k in size.matrices) / 4
    per_weight = BF16 if head == "float" else 1
    return (ternary + per_weight * size.vocab * size.hidden) / (gpu.dram_gb_s * 1e3)
