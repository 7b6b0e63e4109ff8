"""Quantisers whose step size alpha is learnt, per matrix, row or group.

With g the gradient of the real matrix, c = 1 / sqrt(numel) of what shares an alpha, and
v = W / alpha:

=========  ==========================  ================  =================================
name       real weights                clipped           gradients (inside / where clipped)
=========  ==========================  ================  =================================
``lsq``    alpha * {-1, 0, 1},         |v| >= 1          dW = g / 0
           zero for |v| <= 1/2                           dalpha = c * sum g * (t - v) / (+-1)
``seq``    alpha * {-2/3, 0, 2/3},     |v| >= 0.99       dW = g / 0
           zero for |v| <= 1/3                           dalpha = c * sum g * (q - v) / (+-1)
``seq-2``  alpha * {-3, -1, 1, 3} / 4  |v| >= 0.99       as ``seq``
=========  ==========================  ================  =================================

t are the codes and q = real / alpha. ``lsq`` and ``seq`` have ternary codes with the quantum
alpha and 2 alpha / 3 and so a packed form; ``seq-2`` has four levels, for which no backend has
a product: it is for training only. An alpha below 1e-5 counts as 1e-5.

Sources: Esser et al. 2020, "Learned step size quantization" (arXiv:1902.08153), with its start
2 mean|W|; Liu et al. 2025, "ParetoQ" (arXiv:2502.02631), whose code clips at 0.99, starts at
max|W| and gives alpha the gradient +-1 where it clips.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.ops.quantize_weight import MIN_SCALE
from bitnet_torch.quant.data_free import ternary
from bitnet_torch.quant.fixed_point import mean_magnitude
from bitnet_torch.quant.weight import WeightQuantizer, spread

_SEQ_CLIP = 0.99


class LearnableQuantizer(WeightQuantizer):
    """A quantiser with a parameter ``alpha`` of the shape of its scale, made by ``prepare``."""

    alpha: nn.Parameter | None
    clip: ClassVar[float]

    def __init__(self, granularity: str = "matrix", group_size: int | None = None) -> None:
        super().__init__(granularity, group_size)
        self.register_parameter("alpha", None)

    @torch.no_grad()
    def prepare(self, w: Tensor) -> None:
        """Start alpha from the weights ``w`` (N, K); an alpha that is there already is kept."""
        if self.alpha is not None:
            return
        rows = self.as_rows(w.to(torch.float32, memory_format=torch.contiguous_format))
        start = self.start(rows) if rows.numel() else rows.new_full(rows.shape[:1], MIN_SCALE)
        self.alpha = nn.Parameter(self.per_part(start.clamp_min(MIN_SCALE), w).clone())

    @abstractmethod
    def start(self, rows: Tensor) -> Tensor:
        """Return the first alpha (R,) of ``rows`` (R, L)."""

    def positive_alpha(self) -> Tensor:
        """Return alpha, at least 1e-5, in the shape of a scale.

        Raises:
            ConfigurationError: ``prepare`` has not been called.
        """
        if self.alpha is None:
            raise ConfigurationError(
                f"{self.name} has no alpha yet: call prepare(w) with the layer's weights first"
            )
        return self.alpha.clamp_min(MIN_SCALE)

    @abstractmethod
    def levels(self, v: Tensor) -> Tensor:
        """Return real / alpha for ``v = W / alpha``."""

    def surrogate(self, w: Tensor) -> Tensor:
        """Return the real matrix (N, K) with the gradients for ``w`` and alpha."""
        alpha = self.positive_alpha()
        real: Tensor = _LearntStep.apply(w, spread(alpha, w), self)  # type: ignore[no-untyped-call]
        return real

    def sharing(self, w: Tensor) -> int:
        """Return how many weights share an alpha."""
        return self.as_rows(w).shape[1]


class LSQ(LearnableQuantizer):
    """Learned step size with the codes -1, 0, 1."""

    name: ClassVar[str] = "lsq"
    clip: ClassVar[float] = 1.0

    def start(self, rows: Tensor) -> Tensor:
        """Return 2 mean|W|."""
        return mean_magnitude(rows) * 2

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        scale = self.positive_alpha().to(torch.float32).reshape(-1)
        return ternary(rows, scale * 0.5), scale

    def levels(self, v: Tensor) -> Tensor:
        """Return -1, 0 or 1."""
        return (v > 0.5).to(v.dtype) - (v < -0.5).to(v.dtype)


class SEQ(LearnableQuantizer):
    """Stretched elastic quantisation with three levels."""

    name: ClassVar[str] = "seq"
    clip: ClassVar[float] = _SEQ_CLIP

    def start(self, rows: Tensor) -> Tensor:
        """Return max|W|."""
        return rows.abs().amax(-1)

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L) and quanta (R,)."""
        alpha = self.positive_alpha().to(torch.float32).reshape(-1)
        # Tensor / tensor, which every device rounds correctly.
        scale = alpha * 2 / torch.full_like(alpha, 3.0)
        return ternary(rows, scale * 0.5), scale

    def levels(self, v: Tensor) -> Tensor:
        """Return -2/3, 0 or 2/3."""
        third = 1 / 3
        return ((v > third).to(v.dtype) - (v < -third).to(v.dtype)) * (2 / 3)


class SEQ2(LearnableQuantizer):
    """Stretched elastic quantisation with four levels, for training only."""

    name: ClassVar[str] = "seq-2"
    clip: ClassVar[float] = _SEQ_CLIP

    @property
    def not_packable(self) -> str | None:
        """Its levels are four."""
        return "has the codes -3, -1, 1 and 3; packed codes are -1, 0 and 1"

    def start(self, rows: Tensor) -> Tensor:
        """Return max|W|."""
        return rows.abs().amax(-1)

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (R, L), odd, and quanta (R,)."""
        alpha = self.positive_alpha().to(torch.float32).reshape(-1)
        outer = ternary(rows, alpha * 0.5)
        inner = torch.where(rows < 0, -1, 1).to(torch.int8)
        return inner + 2 * outer, alpha * 0.25

    def levels(self, v: Tensor) -> Tensor:
        """Return -3/4, -1/4, 1/4 or 3/4."""
        outer = (v > 0.5).to(v.dtype) - (v < -0.5).to(v.dtype)
        return torch.where(v < 0, -0.25, 0.25).to(v.dtype) + outer * 0.5


class _LearntStep(torch.autograd.Function):
    """The real matrix, with the gradients of the table above."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, alpha: Tensor, quantizer: LearnableQuantizer) -> Tensor:
        ctx.save_for_backward(w, alpha)
        ctx.quantizer = quantizer
        return (alpha * quantizer.levels(w / alpha)).to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, alpha = ctx.saved_tensors
        v = w / alpha
        inside = v.abs() < ctx.quantizer.clip
        slope = torch.where(inside, ctx.quantizer.levels(v) - v, v.sign())
        each = grad * slope * ctx.quantizer.sharing(w) ** -0.5
        return grad * inside, each.sum_to_size(alpha.shape).to(alpha.dtype), None
