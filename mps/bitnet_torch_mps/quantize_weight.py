"""Metal launcher of ``quantize_weight``. Contract: bitnet_torch/ops/quantize_weight.py.

Three kernels make the scales: the peak of each, its partial sums, the scale. Between the first
two the host looks at the peaks, because a weight that is not finite has to be named.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.ops import quantize_weight as op
from bitnet_torch.ops.quantize_weight import raise_if_not_finite
from bitnet_torch_mps._device import by_reference, metal
from bitnet_torch_mps._launch import DTYPES, GROUP, Long, launch, plane_group, row_group

# As in weight_scale.metal.
_WEIGHTS_PER_GROUP = 4096


@metal(op)
def launch_quantize_weight(w: Tensor, granularity: str = "matrix") -> tuple[Tensor, Tensor]:
    """Ternarise by the mean of the magnitudes; an empty matrix is answered by the reference."""
    if not w.numel():
        return by_reference(op, w, granularity)
    w = w.contiguous()
    scale = weight_scales("quantize_weight", w, granularity)
    t = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    n, k = w.shape
    name = f"ternarise_{DTYPES[w.dtype]}"
    per_row = int(granularity == "row")
    group = plane_group(k)
    launch("quantize_weight", name, w, scale, t, per_row, grid=(k, n), group=group)
    return t, scale


def weight_scales(file: str, w: Tensor, granularity: str) -> Tensor:
    """Return the quantum of contiguous ``w``, () or (N,), by the kernels included in ``file``.

    Raises:
        QuantizationError: A weight is not finite.
    """
    shape = w.shape[:1] if granularity == "row" else ()
    scale = torch.empty(shape, dtype=torch.float32, device=w.device)
    scales = scale.numel()
    columns = w.numel() // scales
    parts = -(-columns // _WEIGHTS_PER_GROUP)
    threads = row_group(columns)
    plane = {"grid": (parts * threads, scales), "group": (threads, 1)}
    dtype = DTYPES[w.dtype]
    peak = torch.zeros(shape, dtype=torch.int32, device=w.device)
    launch(file, f"weight_peak_{dtype}", w, peak, Long(columns), **plane)
    raise_if_not_finite(w, peak.view(torch.float32))
    partial = torch.empty((scales, parts), dtype=torch.int64, device=w.device)
    launch(file, f"weight_sum_{dtype}", w, peak, partial, Long(columns), **plane)
    last = {"grid": (scales * GROUP,), "group": (GROUP,)}
    launch(file, "weight_scale", peak, partial, scale, Long(columns), parts, **last)
    return scale
