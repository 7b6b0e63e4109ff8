"""Ternary codes chosen by what a layer is given, not by its weights alone.

With H the Gram matrix of the inputs, ``sum x x^T``, the error that matters is that of the
outputs: ``sum over rows (w - q) H (w - q)^T``. Codes are chosen column by column; what rounding a
column costs is taken up by the columns after it (GPTQ), at once inside a block of 128 and by one
product per block behind it. Then the scales are fitted once more, in the same metric, for the
codes as they are. Two rounds are made, the second from the scales of the first, and each part
that has a scale keeps the best of them and of ``exact-l2``: on the inputs given the result is
never worse than that.

Codes are -1, 0 and 1, so the result has a packed form. Its bits depend on a factorisation in
float64 and may differ between machines; once chosen, codes and scales are data like any other.

Sources: Frantar et al. 2023, "GPTQ" (arXiv:2210.17323), algorithm 1; the metric is that of
"PT2-LLM" (arXiv:2510.03267), without its offset and its order of columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bitnet_torch.errors import QuantizationError, ShapeError
from bitnet_torch.ops.quantize_weight import MIN_SCALE
from bitnet_torch.quant.data_free import ExactL2
from bitnet_torch.quant.weight import QuantizedWeight, spread

BLOCK = 128
# Of the mean of H's diagonal, added to all of it: inputs that never move say nothing.
DAMPING = 0.01
ROUNDS = 2


@torch.no_grad()
def quantize_on_data(
    w: Tensor, gram: Tensor, granularity: str = "row", group_size: int | None = None
) -> QuantizedWeight:
    """Return ``w`` (N, K) as ternary codes and quanta for inputs with the Gram matrix ``gram``.

    Args:
        w: Float of 16 or 32 bits.
        gram: (K, K) float, the sum or mean of ``x x^T``.
        granularity: What shares a quantum, as in :class:`~bitnet_torch.quant.WeightQuantizer`.
        group_size: The same.

    Raises:
        ConfigurationError, DTypeError: As for any quantiser.
        ShapeError: ``gram`` is not (K, K), or ``group_size`` does not divide K.
        QuantizationError: A weight or an element of ``gram`` is not finite.
    """
    start = ExactL2(granularity, group_size).quantize(w)
    if gram.shape != (w.shape[1], w.shape[1]):
        raise ShapeError(f"gram must be (K, K) with K={w.shape[1]}, got {tuple(gram.shape)}")
    h = gram.to(torch.float64)
    if not torch.isfinite(h).all():
        raise QuantizationError("gram has an element that is not finite")
    if not w.numel():
        return start
    h = h + torch.eye(len(h), dtype=h.dtype, device=h.device) * _damping(h)
    exact = w.to(torch.float64)
    best = _Best(exact, h, start)
    for _ in range(ROUNDS):
        best.offer(_fitted(exact, h, _column_by_column(exact, h, best.last)))
    return best.choice


class _Best:
    """The candidate of least error so far, chosen anew for each part that stands alone."""

    def __init__(self, w: Tensor, h: Tensor, first: QuantizedWeight) -> None:
        self._w, self._h = w, h
        self.choice, self.last = first, first
        self._error = self._errors(first)

    def offer(self, candidate: QuantizedWeight) -> None:
        """Take over of ``candidate`` what is better: rows, or the matrix if it has one scale."""
        self.last = candidate
        errors = self._errors(candidate)
        better = errors < self._error
        scale = self.choice.scale
        codes = torch.where(better[:, None], candidate.codes, self.choice.codes)
        wins = better[0] if scale.dim() == 0 else better.reshape(-1, *[1] * (scale.dim() - 1))
        scale = torch.where(wins, candidate.scale, scale)
        self.choice = QuantizedWeight(codes, scale)
        self._error = torch.where(better, errors, self._error)

    def _errors(self, q: QuantizedWeight) -> Tensor:
        """Return the error of each row (N,); of all rows together where they share a scale."""
        miss = self._w - q.dense().to(torch.float64)
        errors = ((miss @ self._h) * miss).sum(-1)
        return errors if q.scale.dim() else errors.sum().expand(len(errors))


def _damping(h: Tensor) -> Tensor:
    mean = h.diagonal().mean()
    return torch.where(mean > 0, mean * DAMPING, 1.0)


def _column_by_column(w: Tensor, h: Tensor, start: QuantizedWeight) -> QuantizedWeight:
    """Return codes for the scales of ``start``, each column making up for those before it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    factor = torch.linalg.cholesky(inverse, upper=True)
    scale = spread(start.scale, start.codes).to(torch.float64).expand_as(w)
    work, codes = w.clone(), torch.zeros_like(start.codes)
    for block in _blocks(w.shape[1]):
        misses = torch.zeros_like(work[:, block])
        for k in range(block.start, block.stop):
            column, quantum = work[:, k], scale[:, k]
            codes[:, k] = (column > quantum / 2).to(torch.int8) - (column < -quantum / 2).to(
                torch.int8
            )
            miss = (column - codes[:, k] * quantum) / factor[k, k]
            rest = slice(k + 1, block.stop)
            work[:, rest] -= miss[:, None] * factor[k, rest]
            misses[:, k - block.start] = miss
        behind = slice(block.stop, None)
        work[:, behind] -= misses @ factor[block, behind]
    return QuantizedWeight(codes, start.scale)


def _blocks(columns: int) -> Iterator[slice]:
    for start in range(0, columns, BLOCK):
        yield slice(start, min(start + BLOCK, columns))


def _fitted(w: Tensor, h: Tensor, q: QuantizedWeight) -> QuantizedWeight:
    """Return the codes of ``q`` with the scales of least error for them."""
    parts = q.scale.shape[1] if q.scale.dim() == 2 else 1
    size = w.shape[1] // parts
    t = q.codes.to(torch.float64)
    # The equations of a row: matrix[g, j] = t_g H t_j and right[g] = t_g H w, parts g and j of t.
    by_part = [
        (t[:, part] @ h[part] * t).reshape(len(t), parts, size).sum(-1)
        for part in (slice(g * size, (g + 1) * size) for g in range(parts))
    ]
    matrix = torch.stack(by_part, 1)
    right = (w @ h * t).reshape(len(t), parts, size).sum(-1)
    if q.scale.dim() == 0:
        matrix, right = matrix.sum(0, keepdim=True), right.sum(0, keepdim=True)
    # A part without codes has no equation: its scale is of no account.
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal += (diagonal == 0).to(torch.float64)
    scale = torch.linalg.solve_ex(matrix, right[..., None]).result[..., 0]
    return QuantizedWeight(q.codes, _usable(scale, q.scale))


def _usable(fitted: Tensor, before: Tensor) -> Tensor:
    """Return the fitted scales (R, G), or those of ``before`` where one is no scale."""
    fitted = fitted.to(torch.float32)
    sound = (torch.isfinite(fitted) & (fitted >= 0)).all(-1, keepdim=True)
    shaped = before.reshape(fitted.shape)
    return torch.where(sound, fitted.clamp_min(MIN_SCALE), shaped).reshape(before.shape)
