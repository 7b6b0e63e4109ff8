"""``python -m bitnet_torch_triton.predict``: print the model of time, table by table."""

from __future__ import annotations

from bitnet_torch_triton.predict import ops
from bitnet_torch_triton.predict.gpu import A100, GPUS
from bitnet_torch_triton.predict.launch import Launch, microseconds
from bitnet_torch_triton.predict.peer import KERNELS, TOKEN_MS, explained
from bitnet_torch_triton.predict.step import (
    MODEL,
    decode_launches,
    decode_us,
    floor_us,
    layer_launches,
)

TOKENS = (1, 8, 16, 128, 512, 2048)


def peer_table() -> str:
    """Return what was published, and what the model makes of it."""
    lines = ["| A100, bitnet.cpp | published | model | ratio |", "|---|---|---|---|"]
    for row in explained():
        found = f"{row.predicted:.2f} | {row.ratio:.2f}"
        lines.append(f"| {row.what} | {row.published:.2f} {row.unit} | {found} |")
    return "\n".join(lines)


def token_table(context: int = 128) -> str:
    """Return the predicted time of one token of the 2B-4T model."""
    lines = [
        "| one token, ms | launches | float head | floor | int8 head | floor | gaps |",
        "|---|---|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        cells = [str(len(decode_launches(gpu, context)))]
        for head in ("float", "int8"):
            cells.append(f"{decode_us(gpu, context, head) / 1e3:.2f}")
            cells.append(f"{floor_us(gpu, head) / 1e3:.2f}")
        cells.append(f"{len(decode_launches(gpu, context)) * gpu.gap_us / 1e3:.2f}")
        lines.append(f"| {gpu.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"\nbitnet.cpp, A100: {TOKEN_MS:.2f} ms published."])


def layer_table(context: int = 128) -> str:
    """Return the launches of a decoder layer, one token."""
    names = " | ".join(gpu.name for gpu in GPUS)
    lines = [f"| launch, us | {names} | waits for (A100) |", "|---|" + "---|" * (len(GPUS) + 1)]
    per_gpu = [layer_launches(MODEL, 1, context, gpu) for gpu in GPUS]
    for launches in zip(*per_gpu, strict=True):
        cells = _cells(launches)
        what, share = launches[0].bound(A100)
        total = launches[0].microseconds(A100)
        waits = what if share > total / 2 else "latency"
        lines.append(f"| {launches[0].name} | {cells} | {waits} |")
    sums = [f"{microseconds(layer, gpu):.1f}" for layer, gpu in zip(per_gpu, GPUS, strict=True)]
    return "\n".join([*lines, f"| **layer** | {' | '.join(sums)} | |"])


def product_table() -> str:
    """Return the ternary products of a layer for several numbers of tokens."""
    names = " | ".join(f"{gpu.name} | bf16" for gpu in GPUS)
    lines = [
        f"| N x K, M, us | {names} | bitnet.cpp, A100 |",
        "|---|" + "---|" * (2 * len(GPUS) + 1),
    ]
    for n, k in MODEL.matrices:
        for m in TOKENS:
            cells = []
            for gpu in GPUS:
                cells.append(f"{ops.product(m, n, k, gpu).microseconds(gpu):.1f}")
                cells.append(f"{ops.float_product(m, n, k).microseconds(gpu):.1f}")
            peer = f"{KERNELS[n, k][0]}" if m == 1 else ""
            lines.append(f"| {n} x {k}, {m} | {' | '.join(cells)} | {peer} |")
    return "\n".join(lines)


def _cells(launches: tuple[Launch, ...]) -> str:
    pairs = zip(launches, GPUS, strict=True)
    return " | ".join(f"{launch.microseconds(gpu):.1f}" for launch, gpu in pairs)


if __name__ == "__main__":
    for table in (peer_table(), token_table(), layer_table(), product_table()):
        print(f"{table}\n")
