"""What bitnet.cpp's CUDA program has published for an A100 40GB, and what the model says of it.

Source: gpu/README.md, gpu/test.py, gpu/model.py and gpu/bitnet_kernels of microsoft/BitNet.

Its kernel table times single calls from Python, one after the other, on the same operands: what
is small shows the host and what fits the L2 cache is read from there. Two numbers are fitted
to the table, one a column: how long the host takes for a call through ctypes, and for
``torch.matmul``. That a weight costs four integer instructions (shift, mask and a saturating
subtraction of bytes, which the hardware lacks) is an estimate that the table bears out, and so in
effect a third: a count by hand of its compiled code gives more. Nothing is fitted to the
times of whole generations, which follow from the launches of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitnet_torch_triton.predict.gpu import A100
from bitnet_torch_triton.predict.launch import Launch, microseconds
from bitnet_torch_triton.predict.ops import BF16, float_product, pointwise, row_op
from bitnet_torch_triton.predict.step import MODEL

HOST_CTYPES_US, HOST_MATMUL_US = 14.0, 18.0
INTEGER_PER_WEIGHT = 4.0
# What its bfloat16 prefill, cuBLAS on 64 to 512 tokens, reaches of the matrix units.
PREFILL_SHARE = 0.55

# (N, K): microseconds of its kernel, and of torch.matmul in bfloat16.
KERNELS = {
    (2560, 2560): (13.32, 18.32),
    (3840, 2560): (14.90, 18.87),
    (13824, 2560): (18.75, 59.51),
    (2560, 6912): (14.49, 37.78),
    (3200, 3200): (14.61, 19.08),
    (4800, 3200): (13.09, 21.84),
    (3200, 10240): (19.64, 60.79),
    (20480, 3200): (30.99, 112.39),
}
# (tokens of the prompt, new tokens): milliseconds.
GENERATIONS = {
    (64, 16): 57.40,
    (64, 32): 112.22,
    (64, 64): 221.08,
    (256, 16): 61.24,
    (256, 32): 115.47,
    (256, 64): 224.16,
    (512, 16): 68.06,
    (512, 32): 122.72,
    (512, 64): 231.82,
}
# (221.08 - 57.40) / (64 - 16): what a further token takes.
TOKEN_MS = 3.41


@dataclass(frozen=True)
class Explained:
    """A published figure and the model's.

    Attributes:
        what: Which figure.
        published: As published.
        predicted: By the model, in the same unit.
        unit: ``"us"`` or ``"ms"``.
    """

    what: str
    published: float
    predicted: float
    unit: str

    @property
    def ratio(self) -> float:
        """Predicted by published."""
        return self.predicted / self.published


def peer_product(n: int, k: int, cached: bool) -> Launch:
    """Return its ternary product of one token."""
    integer = INTEGER_PER_WEIGHT * n * k
    return Launch("product", n * k / 4, integer=integer, cached=cached)


def bf16_product(n: int, k: int) -> Launch:
    """Return ``torch.matmul`` of one token, whose weights may lie in the L2 cache."""
    nbytes = BF16 * n * k
    return Launch("matmul", nbytes, cached=nbytes < 0.8e6 * A100.l2_mb)


def peer_layer() -> list[Launch]:
    """Return the launches of one of its decoder layers for one token."""
    d, inner = MODEL.hidden, MODEL.inner
    # Each product fills its output with zeros, and overwrites it.
    products = [
        launch
        for n, k in MODEL.matrices
        for launch in (Launch("fill", BF16 * n, depth=1, cached=True), peer_product(n, k, False))
    ]
    rows = [
        row_op(name, 1, BF16 * d, d)
        for name in ("norm", "quantise", "sub-norm", "quantise", "norm", "quantise", "attention")
    ]
    wide = [row_op(name, 1, BF16 * inner, inner) for name in ("sub-norm", "quantise")]
    names = ("rotate", "add", "squared relu", "times", "add")
    return [*products, *rows, *wide, *(pointwise(name, 4 * BF16 * d) for name in names)]


def peer_step() -> list[Launch]:
    """Return the launches of one of its decode steps."""
    head = float_product(1, MODEL.vocab, MODEL.hidden, "head")
    around = ("embedding", "lengths", "last norm", "to float", "argmax", "token")
    small = [pointwise(name, BF16 * MODEL.hidden) for name in around]
    return [*(peer_layer() * MODEL.layers), *small, head]


def prefill_us(tokens: int) -> float:
    """Return the time of its prefill, which multiplies bfloat16 weights."""
    weights = MODEL.layers * sum(n * k for n, k in MODEL.matrices)
    nbytes = BF16 * (weights + MODEL.vocab * MODEL.hidden)
    ops = 2.0 * tokens * weights
    return Launch("prefill", nbytes, bf16_ops=ops, share=PREFILL_SHARE).microseconds(A100)


def explained() -> list[Explained]:
    """Return every published figure beside the model's."""
    rows = []
    for (n, k), (kernel, matmul) in KERNELS.items():
        ours = max(HOST_CTYPES_US, peer_product(n, k, True).microseconds(A100))
        rows.append(Explained(f"{n} x {k}, int2", kernel, ours, "us"))
        theirs = max(HOST_MATMUL_US, bf16_product(n, k).microseconds(A100))
        rows.append(Explained(f"{n} x {k}, bf16", matmul, theirs, "us"))
    token = microseconds(peer_step(), A100)
    rows.append(Explained("a further token", TOKEN_MS, token / 1e3, "ms"))
    for (prompt, new), total in GENERATIONS.items():
        # The prefill gives the first token.
        found = (prefill_us(prompt) + (new - 1) * token) / 1e3
        rows.append(Explained(f"{prompt} + {new} tokens", total, found, "ms"))
    return rows
