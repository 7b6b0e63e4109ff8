"""Launch the ternary product of one quantised input with one or several matrices.

Which kernel a launch takes is a row of the launch table: ``gemv`` for one token, ``few`` for two
to eight, ``gemm`` and ``wgmma`` for any number (ternary_gemm.py). Matrices of one call share a
launch, but where only some have a bias, or biases differ in dtype: those of a kind share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from bitnet_torch_triton._launch import KernelConfig, launch
from bitnet_torch_triton.dot4 import dot_for
from bitnet_torch_triton.planar64 import groups_of
from bitnet_torch_triton.policy import arch_of, rule_for
from bitnet_torch_triton.rules import Rule
from bitnet_torch_triton.ternary_gemm import gemm
from bitnet_torch_triton.ternary_gemv import _ternary_gemv_kernel

# Bytes of a load, and so what rows of activations are a multiple of.
WIDTH = 16
# Kernels of ternary_gemm.py.
GEMMS = ("gemm", "wgmma")


class Matrix(NamedTuple):
    """One matrix of a launch, with N rows.

    Attributes:
        codes: In layout planar64.
        w_scale: () or (N,) float32.
        N: Its rows.
        bias: (N,) or None.
    """

    codes: Tensor
    w_scale: Tensor
    N: int
    bias: Tensor | None = None


def multiply(
    x_q: Tensor, x_scale: Tensor, matrices: Sequence[Matrix], dtype: torch.dtype
) -> list[Tensor]:
    """Return the product of ``x_q`` (..., K) with each matrix, without waiting for the device."""
    *rows, k = x_q.shape
    ys = [torch.empty((*rows, matrix.N), dtype=dtype, device=x_q.device) for matrix in matrices]
    pairs = [(matrix, y) for matrix, y in zip(matrices, ys, strict=True) if y.numel()]
    if not pairs:
        return ys
    x, x_scale = aligned_rows(x_q.reshape(x_scale.numel(), k)), x_scale.contiguous()
    for _, group in groupby(pairs, key=lambda pair: _kind(pair[0])):
        _launch_group(x, x_scale, list(group), k)
    return ys


def aligned_rows(x_q: Tensor) -> Tensor:
    """Return the int8 rows ``x_q`` (M, K) such that each can be loaded 16 bytes at a time.

    Those of nearly every model are that already; others are copied, with zeros behind.
    """
    x, k = x_q.contiguous(), x_q.shape[1]
    if k % WIDTH:
        return pad(x, (0, -k % WIDTH))
    return x.clone() if x.data_ptr() % WIDTH else x


def _kind(matrix: Matrix) -> torch.dtype | None:
    return None if matrix.bias is None else matrix.bias.dtype


def _launch_group(
    x: Tensor, x_scale: Tensor, pairs: Sequence[tuple[Matrix, Tensor]], k: int
) -> None:
    n = sum(matrix.N for matrix, _ in pairs)
    rule = rule_for("ternary_linear", arch_of(x.device), x.shape[0], n, k, x.device)
    launch_rule(rule, x, x_scale, pairs, k)


def launch_rule(
    rule: Rule, x: Tensor, x_scale: Tensor, pairs: Sequence[tuple[Matrix, Tensor]], k: int
) -> Any:
    """Launch the product as a rule says; return the compiled kernel, None in the interpreter.

    Args:
        rule: Of ``ternary_linear``, for so many tokens.
        x: (M, K) int8 from :func:`aligned_rows`.
        x_scale: (M,) float32, contiguous.
        pairs: Matrices of a kind, each with its output (M, N).
        k: Inputs, without what ``aligned_rows`` has added.
    """
    m, arch, config = x.shape[0], arch_of(x.device), rule.config
    described, biases = tuple(_described(matrix, y) for matrix, y in pairs), _biases(pairs)
    groups = groups_of(k)
    if rule.kernel in GEMMS:
        return gemm(rule.kernel, config, arch, x, x_scale, described, biases, groups)
    programs = sum(triton.cdiv(matrix.N, config.block_n) for matrix, _ in pairs)
    sizes = [x.shape[1] // WIDTH, groups]
    if rule.kernel != "gemv":
        sizes.insert(0, m)
    arguments = (x, x_scale, described, biases, *sizes)
    return launch(kernel_of(rule), programs, config, *arguments, **constants_of(rule, arch))


def _described(matrix: Matrix, y: Tensor) -> tuple[Any, ...]:
    stride = int(matrix.w_scale.numel() > 1)
    return matrix.codes, matrix.w_scale.contiguous(), stride, y, matrix.N


def _biases(pairs: Sequence[tuple[Matrix, Tensor]]) -> tuple[Tensor, ...] | None:
    """Return the biases of matrices of a kind, of which all have one or none has."""
    # Not among the members of a matrix: Triton 3.6 takes no None inside a tuple.
    biases = [matrix.bias for matrix, _ in pairs if matrix.bias is not None]
    return tuple(bias.contiguous() for bias in biases) or None


def kernel_of(rule: Rule) -> Any:
    """Return the kernel that a rule of ``ternary_linear`` names."""
    if rule.kernel == "few":
        # Here and not at the top: the interpreter and AMD do without Gluon.
        from bitnet_torch_triton.ternary_few import _ternary_few_kernel

        return _ternary_few_kernel
    return _ternary_gemv_kernel


def constants_of(rule: Rule, arch: str) -> dict[str, Any]:
    """Return the compile-time arguments that such a kernel takes on ``arch``."""
    return _CONSTANTS[rule.kernel](rule.config, arch)


def _gemv_constants(config: KernelConfig, arch: str) -> dict[str, Any]:
    return {
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "ROWS": config.rows,
        "SPLIT_K": config.split_k,
        "UNROLL": config.unroll,
        "DOT": dot_for(arch),
    }


def _few_constants(config: KernelConfig, arch: str) -> dict[str, Any]:
    return {"BLOCK_N": config.block_n, "SPLIT_K": config.split_k, "WARPS": config.num_warps}


_CONSTANTS = {"gemv": _gemv_constants, "few": _few_constants}
