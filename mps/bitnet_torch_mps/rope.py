"""Metal launcher of ``rope``. Contract: bitnet_torch/ops/rope.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitnet_torch.ops import rope as op
from bitnet_torch_mps._device import metal
from bitnet_torch_mps._launch import DTYPES, launch, plane_group


@metal(op)
def launch_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head by its position's angles."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    *lead, d = x.shape
    period = table_period(lead, list(cos.shape[:-1]))
    if period is None:
        cos, sin = (table.expand(*lead, d // 2) for table in (cos, sin))
        period = [1, math.prod(lead)]
    launch(
        "rope",
        f"rope_{DTYPES[x.dtype]}",
        x.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        y,
        period,
        grid=(d // 2, math.prod(lead)),
        group=plane_group(d // 2),
    )
    return y


def table_period(lead: list[int], table: list[int]) -> list[int] | None:
    """Return [repeats, table_rows] of a table whose own dimensions stand side by side, else None.

    Args:
        lead: Leading sizes of x, none of them 0.
        table: Leading sizes of the table; each is 1 or x's, counted from the right.
    """
    table = [1] * (len(lead) - len(table)) + table
    own = [i for i, size in enumerate(table) if size != 1]
    if not own:
        return [1, 1]
    first, last = own[0], own[-1] + 1
    if table[first:last] != lead[first:last]:
        return None
    return [math.prod(lead[last:]), math.prod(lead[first:last])]
