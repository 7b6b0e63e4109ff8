"""The scale of a weight matrix whose rows lie on several processes, with the bits of the whole.

A mean of the shards' means is wrong where shards differ in size, and a float sum of sums has
other bits for every number of processes. ``quantize_weight`` defines its scale by a maximum and an
integer sum, and both may be taken in any order and grouping::

    a = all-reduce max  of max |W|                       float32
    S = all-reduce sum  of sum int64(rne(|W| * 2^p))     p from a

so the scale here is the scale of the whole matrix, to the bit. All matrices of a model share the
two all-reduces: 4 and 8 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bitnet_torch.errors import QuantizationError
from bitnet_torch.ops.quantize_weight import MIN_SCALE, codes_of, in_units, scale_of_sum

# The units of a weight are int64: as many as this are held at once, 8 MiB.
_BLOCK = 1 << 20
_KINDS = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class RowShard:
    """Rows of a matrix that this process holds.

    Attributes:
        name: Of the layer, for messages.
        rows: Latent weights (n, K), n >= 0.
        first_row: Where they stand in the matrix.
        shape: (N, K) of the whole matrix.
        granularity: ``"matrix"`` or ``"row"``.
    """

    name: str
    rows: Tensor
    first_row: int
    shape: tuple[int, int]
    granularity: str


def shard_scales(
    shards: Sequence[RowShard], group: dist.ProcessGroup | None = None
) -> list[Tensor]:
    """Return the scales of whole matrices of which each process holds some rows.

    Collective: every process of the group calls it with its rows of the same matrices, in the
    same order. Two all-reduces for all of them.

    Returns:
        For each shard float32: the scale () of the whole matrix, or those (n,) of its rows.

    Raises:
        QuantizationError: A weight is not finite, on any process; raised on all of them, with
            the layer and the index.
    """
    if not shards:
        return []
    peaks = torch.stack([_peak(shard.rows) for shard in shards])
    dist.all_reduce(peaks, dist.ReduceOp.MAX, group)
    _raise_if_not_finite(shards, peaks, group)
    whole = [i for i, shard in enumerate(shards) if shard.granularity == "matrix"]
    scales = dict(zip(whole, _matrix_scales(shards, peaks, whole, group), strict=True))
    return [scales[i] if i in scales else _row_scales(shard.rows) for i, shard in enumerate(shards)]


def shard_codes(shard: RowShard, scale: Tensor) -> Tensor:
    """Return the codes int8 (n, K) of a shard's rows for its scale by :func:`shard_scales`."""
    return codes_of(shard.rows.to(torch.float32), scale.reshape(-1))


def _matrix_scales(
    shards: Sequence[RowShard], peaks: Tensor, which: list[int], group: dist.ProcessGroup | None
) -> list[Tensor]:
    if not which:
        return []
    totals = torch.stack(
        [
            sum((in_units(b, peaks[i]).sum() for b in _blocks(shards[i].rows)), _zero(peaks))
            for i in which
        ]
    )
    dist.all_reduce(totals, dist.ReduceOp.SUM, group)
    sizes = torch.tensor([shards[i].shape[0] * shards[i].shape[1] for i in which])
    return list(scale_of_sum(peaks[which], totals, sizes).unbind())


def _row_scales(rows: Tensor) -> Tensor:
    if not rows.numel():
        return torch.full(rows.shape[:1], MIN_SCALE, dtype=torch.float32, device=rows.device)
    parts = []
    for block in _blocks(rows):
        peak = block.amax(-1)
        total = in_units(block, peak[:, None]).sum(-1)
        parts.append(scale_of_sum(peak, total, block.shape[1]))
    return torch.cat(parts)


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=like.device)


def _blocks(rows: Tensor) -> Iterator[Tensor]:
    """Yield the magnitudes in float32, some rows at a time."""
    for block in rows.split(max(1, _BLOCK // max(rows.shape[1], 1))):
        yield block.to(torch.float32).abs()


def _peak(rows: Tensor) -> Tensor:
    """Return the largest magnitude; infinity for NaN, which a reduction may drop."""
    if not rows.numel():
        return torch.zeros((), dtype=torch.float32, device=rows.device)
    low, high = rows.aminmax()
    peak = torch.maximum(high, -low).to(torch.float32)
    return peak.nan_to_num(nan=float("inf"), posinf=float("inf"))


def _raise_if_not_finite(
    shards: Sequence[RowShard], peaks: Tensor, group: dist.ProcessGroup | None
) -> None:
    """Raise on every process, or the healthy ones would wait for the others for ever."""
    finite = torch.isfinite(peaks)
    if bool(finite.all()):
        return
    shard = shards[int((~finite).nonzero()[0])]
    n, k = shard.shape
    first = torch.full((), 4 * n * k, dtype=torch.int64, device=peaks.device)
    if len(bad := (~torch.isfinite(shard.rows)).nonzero()):
        row, column = (int(i) for i in bad[0])
        value = str(float(shard.rows[row, column]))
        first.fill_(4 * ((shard.first_row + row) * k + column) + _KINDS.index(value))
    dist.all_reduce(first, dist.ReduceOp.MIN, group)
    flat, kind = divmod(int(first), 4)
    index = divmod(flat, k)
    raise QuantizationError(
        f"{shard.name}: weight [{index[0]}, {index[1]}] is {_KINDS[kind]}; a ternary scale needs "
        "finite weights",
        module=shard.name,
        index=index,
        value=float(_KINDS[kind]),
    )
