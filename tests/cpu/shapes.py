"""Shapes and inputs that break kernels: around the tiles, primes, empty, and extreme numbers."""

import torch

# N around panels of 8 and groups of 32; K around steps of 16, blocks of 256 and vectors of 32.
WEIGHTS = [
    *((0, 5), (1, 1), (1, 16), (3, 17), (7, 15), (8, 16), (9, 31), (31, 255), (33, 257)),
    *((64, 64), (72, 512), (100, 0), (127, 300), (257, 48)),
]
# Around the kernels' switches: one token, tiles of 2 and 4, 12 | 13, blocks of 128.
TOKENS = [0, 1, 2, 3, 4, 5, 8, 12, 13, 14, 127, 128, 129]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def plain(m, k):
    return torch.randn(m, k)


def tiny(m, k):
    return torch.randn(m, k) * 1e-7


def ties(m, k):
    """Multiples of 1/2 with a maximum of 127: the scaled values are exact ties."""
    x = torch.randint(-253, 254, (m, k)) * 0.5
    x[:, :1] = 127.0
    return x


def huge(m, k):
    return torch.randn(m, k) * 2.0**120


def broken(m, k):
    """NaN, infinity and a value above 2^126, in the first, the middle and the last element."""
    x = torch.randn(m, k)
    if m and k:
        x[0, k - 1] = float("nan")
        x[m // 2, 0] = float("-inf")
        x[m - 1, k // 2] = 2.0**126 * 1.5
    return x


def subnormal(m, k):
    return torch.randn(m, k) * 2.0**-20 * torch.randint(0, 2, (m, k))


INPUTS = [plain, tiny, ties, huge, broken, subnormal]
