"""The inputs that every op is tried on: ugly shapes, ugly values, all dtypes."""

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (M, K, N): one, primes, tile +/- 1, nothing, one token and many.
SHAPES = [
    (0, 64, 8),
    (1, 1, 1),
    (1, 64, 64),
    (1, 257, 33),
    (2, 15, 9),
    (3, 0, 5),
    (5, 68, 33),
    (8, 129, 7),
    (12, 31, 32),
    (13, 128, 40),
    (17, 132, 65),
    (64, 256, 128),
    (131, 513, 31),
    (4, 16, 0),
]

STYLES = ("normal", "ties", "saturated", "tiny", "huge", "mixed", "zeros", "broken")


def activations(shape: tuple[int, ...], dtype: torch.dtype, style: str, seed: int) -> Tensor:
    """Return a tensor whose values are hard in the way that ``style`` names."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g)
    if style == "ties":
        # Halves of a quantum: every product lands on or beside a rounding tie.
        x = torch.randint(-254, 255, shape, generator=g).to(torch.float32) / 2
        if x.numel() and x.shape[-1]:
            x[..., 0] = 127.0
    elif style == "saturated":
        x = x.sign() * 3.0
    elif style == "tiny":
        x = x * 2.0**-20
    elif style == "huge":
        x = x * (2.0**10 if dtype == torch.float16 else 2.0**120)
    elif style == "mixed":
        x = x * torch.exp2(torch.randint(-14, 14, shape, generator=g).to(torch.float32))
    elif style == "zeros":
        x = torch.zeros(shape)
    elif style == "broken" and x.numel():
        rows = x.reshape(-1, x.shape[-1])
        bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 2.0**127])
        for row in range(0, rows.shape[0], 2):
            column = int(torch.randint(0, rows.shape[1], (1,), generator=g))
            rows[row, column] = bad[row // 2 % 4]
    return x.to(dtype)


def weights(n: int, k: int, dtype: torch.dtype, style: str, seed: int) -> Tensor:
    """Return finite latent weights (N, K); styles that are not finite fall back to normal."""
    usable = "normal" if style in ("broken", "huge") else style
    return activations((n, k), dtype, usable, seed)


def codes(n: int, k: int, seed: int) -> Tensor:
    """Return random ternary codes (N, K) int8."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (n, k), generator=g, dtype=torch.int8)


sizes = st.integers(0, 70)
leading = st.lists(st.integers(0, 5), min_size=0, max_size=2).map(tuple)
styles = st.sampled_from(STYLES)
seeds = st.integers(0, 2**31 - 1)
