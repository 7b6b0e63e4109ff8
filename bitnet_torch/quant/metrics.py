"""How far a quantised matrix is from the one it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch.errors import ShapeError


@dataclass(frozen=True)
class WeightError:
    """The distance of an approximation Q from weights W, over all elements.

    Attributes:
        relative_error: ``|W - Q| / |W|`` in the Frobenius norm; None if W is zero.
        cosine: ``<W, Q> / (|W| |Q|)``; None if either is zero.
        sqnr_db: Signal over quantisation noise, ``20 log10(|W| / |W - Q|)`` decibel; None if W is
            zero or Q equal to it.
    """

    relative_error: float | None
    cosine: float | None
    sqnr_db: float | None


def weight_error(weight: Tensor, approximation: Tensor) -> WeightError:
    """Return the distance of ``approximation`` from ``weight``, of any one shape; in float64.

    Raises:
        ShapeError: The shapes differ.
    """
    if weight.shape != approximation.shape:
        raise ShapeError(
            f"weight and approximation must have one shape, got {tuple(weight.shape)} and "
            f"{tuple(approximation.shape)}"
        )
    w, q = weight.detach().to(torch.float64), approximation.detach().to(torch.float64)
    signal, noise, level = (float(torch.linalg.vector_norm(x)) for x in (w, w - q, q))
    inner = float((w * q).sum())
    return WeightError(
        relative_error=noise / signal if signal else None,
        cosine=inner / (signal * level) if signal and level else None,
        sqnr_db=20 * math.log10(signal / noise) if signal and noise else None,
    )
