"""CPU launcher of :func:`bitnet_torch.ops.multi_ternary_linear`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bitnet_torch.cpu import panel8
from bitnet_torch.cpu._library import DTYPE_CODE, INT, POINTER, SIZE, failure, function
from bitnet_torch.ops import multi_ternary_linear as op
from bitnet_torch.ops._registry import implement
from bitnet_torch.ops.layouts import convert


class MatrixArguments(ctypes.Structure):
    """``LinearArguments`` of ternary_linear.hpp."""

    _fields_ = (
        ("panels", POINTER),
        ("panels_bytes", SIZE),
        ("w_scale", POINTER),
        ("w_scale_count", SIZE),
        ("bias", POINTER),
        ("bias_dtype", INT),
        ("y", POINTER),
        ("y_dtype", INT),
        ("M", SIZE),
        ("N", SIZE),
        ("K", SIZE),
    )


_kernel = function(
    "multi_ternary_linear", POINTER, POINTER, ctypes.POINTER(MatrixArguments), SIZE, INT
)


@implement(op, backend="cpu", device="cpu")
def _launch(
    x_q: Tensor,
    x_scale: Tensor,
    prepacked: Sequence[Tensor],
    layout: str,
    w_scale: Sequence[Tensor],
    N: Sequence[int],
    dtype: torch.dtype,
    bias: Sequence[Tensor | None],
) -> list[Tensor]:
    x_q, x_scale = x_q.contiguous(), x_scale.contiguous()
    *rows, k = x_q.shape
    # These lists keep alive what the pointers point to.
    panels = [
        convert(codes, n, k, layout, panel8.NAME).contiguous()
        for codes, n in zip(prepacked, N, strict=True)
    ]
    scales = [scale.contiguous() for scale in w_scale]
    biases = [None if b is None else b.contiguous() for b in bias]
    ys = [torch.empty((*rows, n), dtype=dtype, device=x_q.device) for n in N]
    matrices = [
        MatrixArguments(
            codes.data_ptr(),
            codes.numel(),
            scale.data_ptr(),
            scale.numel(),
            None if b is None else b.data_ptr(),
            0 if b is None else DTYPE_CODE[b.dtype],
            y.data_ptr(),
            DTYPE_CODE[dtype],
            x_scale.numel(),
            n,
            k,
        )
        for codes, scale, b, y, n in zip(panels, scales, biases, ys, N, strict=True)
    ]
    array = (MatrixArguments * len(matrices))(*matrices)
    status = _kernel(
        x_q.data_ptr(), x_scale.data_ptr(), array, len(matrices), torch.get_num_threads()
    )
    if status:
        raise failure("multi_ternary_linear", status)
    return ys


def bound_call(
    x_q: Tensor, x_scale: Tensor, codes: Tensor, w_scale: Tensor, dtype: torch.dtype, threads: int
) -> Callable[[], Tensor]:
    """Return one product (M, N) as the kernel alone: its arguments are made here, once.

    Args:
        x_q: (M, K) int8.
        x_scale: (M,) float32.
        codes: panel8 buffer; N is what fills it, a multiple of 8.
        w_scale: () float32.
        dtype: Of the result, which every call writes anew.
        threads: Threads.
    """
    m, k = x_q.shape
    n = codes.numel() // (-(-k // 16) * 32) * 8
    y = torch.empty((m, n), dtype=dtype, device=x_q.device)
    where = (codes.data_ptr(), codes.numel(), w_scale.data_ptr(), 1, None, 0)
    matrix = MatrixArguments(*where, y.data_ptr(), DTYPE_CODE[dtype], m, n, k)
    held = (x_q, x_scale, codes, w_scale)

    def call() -> Tensor:
        status = _kernel(held[0].data_ptr(), held[1].data_ptr(), ctypes.byref(matrix), 1, threads)
        if status:
            raise failure("multi_ternary_linear", status)
        return y

    return call
