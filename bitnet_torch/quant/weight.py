"""What a quantiser of weights is: integers and quanta, and a way for the gradient.

A quantiser turns a matrix (N, K) into int8 ``codes`` and float32 quanta, ``real = codes *
scale``. A quantum belongs to the whole matrix, to a row, or to a group of ``group_size``
neighbouring weights of a row::

    granularity   scale        what shares a quantum
    "matrix"      ()           the matrix
    "row"         (N,)         an output's weights
    "group"       (N, G)       weights g * group_size .. (g + 1) * group_size - 1 of a row,
                               G = K / group_size

Training computes with these integers (:class:`bitnet_torch.nn.QuantLinear`), so that what is
learnt is what is deployed. Codes -1, 0 and 1 can be packed, whatever rule has chosen them. A
quantiser of other codes, or with an offset, says so in :attr:`WeightQuantizer.not_packable`:
it is for training only, and ``pack`` refuses it with that reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError, ShapeError
from bitnet_torch.ops._checks import FLOATS, check_dtype
from bitnet_torch.ops.quantize_weight import MIN_SCALE, raise_if_not_finite

GRANULARITIES = ("matrix", "row", "group")


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix as integers and quanta: ``real = codes * scale + offset``.

    Attributes:
        codes: (N, K) int8.
        scale: (), (N,) or (N, G) float32.
        offset: Of the shape of ``scale``, or None for none.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the real matrix (N, K), float32."""
        dense = self.codes * spread(self.scale, self.codes)
        return dense if self.offset is None else dense + spread(self.offset, self.codes)


def spread(values: Tensor, matrix: Tensor) -> Tensor:
    """Return one value per matrix, row or group, (), (N,) or (N, G), so that it broadcasts.

    Args:
        values: The values.
        matrix: (N, K), what the result is multiplied with or added to.
    """
    if values.dim() == 2:
        return values.repeat_interleave(matrix.shape[1] // values.shape[1], 1)
    return values[:, None] if values.dim() == 1 else values


class WeightQuantizer(nn.Module, ABC):
    """A rule that turns weights into codes and quanta.

    A subclass gives :meth:`quantize_rows`; one that is learnt adds parameters in
    :meth:`prepare` and a gradient in :meth:`surrogate`.

    Args:
        granularity: ``"matrix"``, ``"row"`` or ``"group"``: what shares a quantum.
        group_size: Weights of a group, a divisor of K; with ``"group"`` only.

    Raises:
        ConfigurationError: The granularity is unknown, or a group size is missing, out of
            range, or given where there are no groups.
    """

    name: ClassVar[str]

    def __init__(self, granularity: str = "matrix", group_size: int | None = None) -> None:
        super().__init__()
        if granularity not in GRANULARITIES:
            raise ConfigurationError(
                f"granularity must be one of {GRANULARITIES}, got {granularity!r}"
            )
        if (group_size is not None) != (granularity == "group"):
            raise ConfigurationError(
                f"group_size must be given with granularity 'group' and with no other, got "
                f"granularity={granularity!r}, group_size={group_size!r}"
            )
        if group_size is not None and group_size < 1:
            raise ConfigurationError(f"group_size must be at least 1, got {group_size}")
        self.granularity = granularity
        self.group_size = group_size

    @property
    def not_packable(self) -> str | None:
        """Why these codes have no packed form, as the end of a sentence; None if they have."""
        return None

    def prepare(self, w: Tensor) -> None:
        """Make ready for the layer with the weights ``w`` (N, K): check, and start what is learnt.

        Raises:
            ShapeError: ``group_size`` does not divide K.
        """
        self.as_rows(w)

    @torch.no_grad()
    def quantize(self, w: Tensor) -> QuantizedWeight:
        """Return ``w`` (N, K), float of 16 or 32 bits, as codes and quanta.

        The bits of both depend on ``w`` only: on no number of threads.

        Raises:
            DTypeError: ``w`` is of another dtype.
            ShapeError: ``w`` is not a matrix, or ``group_size`` does not divide K.
            QuantizationError: A weight is not finite; the message names its index.
        """
        check_dtype("w", w, *FLOATS)
        rows = self.as_rows(w.to(torch.float32, memory_format=torch.contiguous_format))
        if not rows.numel():
            codes = rows.to(torch.int8)
            scale = torch.full(rows.shape[:1], MIN_SCALE, dtype=torch.float32, device=w.device)
        else:
            raise_if_not_finite(w, rows.abs().amax(-1))
            codes, scale = self.quantize_rows(rows)
        return QuantizedWeight(codes.reshape(w.shape), self.per_part(scale, w))

    @abstractmethod
    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (codes (R, L) int8, quanta (R,) float32) of finite float32 ``rows`` (R, L)."""

    def surrogate(self, w: Tensor) -> Tensor:
        """Return a tensor of the shape of ``w`` that leads the gradient of the real matrix on.

        Its values are of no account. The straight-through estimator, which is the default,
        gives the gradient to the weights as it is.
        """
        return w

    def mixed(self, w: Tensor, strength: float = 1.0) -> Tensor:
        """Return ``w + strength * (Q(w) - w)`` with the gradient of :meth:`surrogate`.

        For float computations: the warm-up, and codes that cannot be packed.
        """
        carrier = self.surrogate(w)
        value = w.detach() + strength * (self.quantize(w).dense().to(w.dtype) - w.detach())
        if carrier is w:
            return w + (value - w).detach()
        # A learnt quantiser has a part in the result as large as its strength.
        lead = w * (1 - strength) + carrier * strength
        return lead + (value - lead).detach()

    def as_rows(self, w: Tensor) -> Tensor:
        """Return ``w`` (N, K) as rows that share a quantum each.

        Raises:
            ShapeError: ``w`` is not a matrix, or ``group_size`` does not divide K.
        """
        if w.dim() != 2:
            raise ShapeError(f"w must be (N, K), got {tuple(w.shape)}")
        if self.granularity == "matrix":
            return w.reshape(1, -1)
        if self.group_size is None:
            return w
        if not w.shape[1] or w.shape[1] % self.group_size:
            raise ShapeError(
                f"group_size must divide K, got group_size={self.group_size}, K={w.shape[1]}"
            )
        return w.reshape(-1, self.group_size)

    def per_part(self, values: Tensor, w: Tensor) -> Tensor:
        """Return one value per row of :meth:`as_rows` in the shape of a scale."""
        if self.granularity == "matrix":
            return values.reshape(())
        if self.group_size is None:
            return values
        return values.reshape(w.shape[0], w.shape[1] // self.group_size)

    def extra_repr(self) -> str:
        """Show what shares a quantum."""
        return self.granularity + (f" of {self.group_size}" if self.group_size else "")
