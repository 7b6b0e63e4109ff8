"""Several ternary linear layers on one quantised input: the contract and the reference.

By definition one product for each matrix, with its own scale and bias::

    y[i] = ternary_linear(x_q, x_scale, packed[i], w_scale[i], N[i], dtype, bias[i])

Query, key and value read the same activations, and so do gate and up: a fused version starts
its threads once for all of them, and none of them quantises anew. A list of one is a layer
whose input is quantised already.

==========  ==================  ========  ==========================================
argument    shape               dtype     meaning
==========  ==================  ========  ==========================================
x_q         (..., K)            int8      activation codes, any strides
x_scale     (...)               float32   activation quantum per token
prepacked   each by layout      uint8     codes of each matrix in layout ``layout``
layout      --                  str       a name in ``layouts.LAYOUTS``
w_scale     each (), (1,) or    float32   weight quantum of a matrix, or of each of
            (N[i],)                       its rows
N           one each            int       out_features of each matrix
dtype       --                  --        float32, bfloat16 or float16, of all y
bias        each (N[i],) or     float     one entry for each matrix
            None
y           each (..., N[i])    dtype     contiguous; a list, in the order given
==========  ==================  ========  ==========================================

Codes are trusted, as in ``bit_linear_prepacked``.

Source: the contract of ``ternary_linear``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError
from bitnet_torch.ops._checks import (
    check_bias,
    check_float_dtype,
    check_quantised,
    check_same_device,
    check_weight_scale,
)
from bitnet_torch.ops._registry import declare
from bitnet_torch.ops.layouts import check_prepacked, layout_named
from bitnet_torch.ops.ternary_linear import ternary_linear


def _check(
    x_q: Tensor,
    x_scale: Tensor,
    prepacked: Sequence[Tensor],
    layout: str,
    w_scale: Sequence[Tensor],
    N: Sequence[int],
    dtype: torch.dtype,
    bias: Sequence[Tensor | None],
) -> None:
    check_quantised(x_q, x_scale)
    check_float_dtype("dtype", dtype)
    counts = len(prepacked), len(w_scale), len(N), len(bias)
    if len(set(counts)) > 1 or not N:
        raise ShapeError(
            f"prepacked, w_scale, N and bias must have one entry for each of one or more "
            f"matrices, got {counts[0]}, {counts[1]}, {counts[2]} and {counts[3]}"
        )
    k, device = x_q.shape[-1], x_q.device
    elsewhere = x_scale.device != device
    for i, (codes, scale, n, b) in enumerate(zip(prepacked, w_scale, N, bias, strict=True)):
        check_prepacked(codes, layout, n, k, f"prepacked[{i}]")
        check_weight_scale(scale, n, f"w_scale[{i}]")
        elsewhere |= codes.device != device or scale.device != device
        if b is not None:
            check_bias(b, n, f"bias[{i}]")
            elsewhere |= b.device != device
    if elsewhere:
        lists = {"prepacked": prepacked, "w_scale": w_scale, "bias": bias}
        # Making all these names costs more than comparing the devices.
        named = {f"{name}[{i}]": t for name, ts in lists.items() for i, t in enumerate(ts)}
        check_same_device(x_q=x_q, x_scale=x_scale, **named)


def _fake(
    x_q: Tensor,
    x_scale: Tensor,
    prepacked: Sequence[Tensor],
    layout: str,
    w_scale: Sequence[Tensor],
    N: Sequence[int],
    dtype: torch.dtype,
    bias: Sequence[Tensor | None],
) -> list[Tensor]:
    return [torch.empty((*x_q.shape[:-1], n), dtype=dtype, device=x_q.device) for n in N]


@declare(
    "multi_ternary_linear(Tensor x_q, Tensor x_scale, Tensor[] prepacked, str layout, "
    "Tensor[] w_scale, int[] N, ScalarType dtype, Tensor?[] bias) -> Tensor[]",
    check=_check,
    fake=_fake,
)
def multi_ternary_linear(
    x_q: Tensor,
    x_scale: Tensor,
    prepacked: Sequence[Tensor],
    layout: str,
    w_scale: Sequence[Tensor],
    N: Sequence[int],
    dtype: torch.dtype,
    bias: Sequence[Tensor | None],
) -> list[Tensor]:
    """Multiply one quantised input by several matrices. See the module docstring."""
    unpack = layout_named(layout).unpack
    return [
        ternary_linear.impls["reference"](
            x_q, x_scale, unpack(codes, n, x_q.shape[-1]), scale, n, dtype, b
        )
        for codes, scale, n, b in zip(prepacked, w_scale, N, bias, strict=True)
    ]
