"""Pairs (x, weight) on which a screened head is hard: made from sizes and a generator."""

import torch

from bitnet_torch import ops


def head_of(weight):
    """Return h, h_scale and bounds of a float head."""
    h, h_scale = ops.quantize_head(weight)
    return h, h_scale, ops.head_bounds(weight, h, h_scale)


def plain(m, n, k, g):
    return torch.randn(m, k, generator=g), torch.randn(n, k, generator=g)


def peaked(m, n, k, g):
    """A few rows point along x, as the rows of likely tokens do."""
    x, weight = plain(m, n, k, g)
    for i in range(min(m, n)):
        weight[int(torch.randint(n, (), generator=g))] = x[i] * 2
    return x, weight


def near_ties(m, n, k, g):
    """All rows are one row, moved by about a float32 rounding."""
    x, weight = plain(m, n, k, g)
    moved = 1 + torch.randn(n, k, generator=g) * 2.0**-23
    return x, weight[:1] * moved if n else weight


def equal_rows(m, n, k, g):
    x, weight = plain(m, n, k, g)
    return x, weight[torch.randint(max(1, n // 3), (n,), generator=g)] if n else weight


def equal_in_codes(m, n, k, g):
    """Rows that differ only below half a quantum: all have the same codes and scale."""
    x, weight = plain(m, n, k, g)
    if n and k:
        weight = weight[:1].sign() * (1 + 0.003 * torch.rand(n, k, generator=g))
        weight[:, 0] = 127.0
    return x, weight


def huge_row(m, n, k, g):
    x, weight = plain(m, n, k, g)
    weight[: n // 2 + 1] *= 2.0**60
    weight[n // 3 : n // 3 + 1] *= 2.0**40
    return x, weight


def tiny(m, n, k, g):
    x, weight = plain(m, n, k, g)
    return x * 2.0**-20, weight * 2.0**-30


def subnormal(m, n, k, g):
    x, weight = plain(m, n, k, g)
    return x * 2.0**-70, weight * 2.0**-75


def saturated(m, n, k, g):
    x, weight = plain(m, n, k, g)
    return x.sign() * 3, weight.sign() * 0.5


def outlier(m, n, k, g):
    """One value of x takes all of its int8 range."""
    x, weight = plain(m, n, k, g)
    x[:, :1] *= 1000
    return x, weight


def zeros(m, n, k, g):
    x, weight = plain(m, n, k, g)
    x[::2] = 0
    weight[::2] = -0.0
    return x, weight


def mixed_scales(m, n, k, g):
    x, weight = plain(m, n, k, g)
    return x, weight * torch.exp2(torch.randint(-20, 20, (n, 1), generator=g).float())


def not_finite(m, n, k, g):
    x, weight = plain(m, n, k, g)
    bad = torch.tensor([float("nan"), float("inf"), -float("inf")])
    if k:
        for rows in (x, weight):
            for i in range(0, len(rows), 3):
                column = int(torch.randint(k, (), generator=g))
                rows[i, column] = bad[int(torch.randint(3, (), generator=g))]
    return x, weight


def overflowing(m, n, k, g):
    """Products and sums beyond float32, both ways and cancelling."""
    x, weight = plain(m, n, k, g)
    return x * 2.0**70, weight * torch.exp2(torch.randint(40, 58, (n, 1), generator=g).float())


MAKERS = [
    plain,
    peaked,
    near_ties,
    equal_rows,
    equal_in_codes,
    huge_row,
    tiny,
    subnormal,
    saturated,
    outlier,
    zeros,
    mixed_scales,
    not_finite,
    overflowing,
]
