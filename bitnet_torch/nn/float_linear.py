"""``nn.Linear`` with sums of one order: what a float layer of our models is."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from bitnet_torch.nn._autocast import autocast_input
from bitnet_torch.ops._checks import check_features
from bitnet_torch.ops.float_linear import float_linear


class FloatLinear(nn.Linear):
    """Drop-in ``nn.Linear`` with the same bits for any batch, chunk and number of threads.

    Parameters and ``state_dict`` keys are those of ``nn.Linear``; the sums are those of
    :func:`bitnet_torch.ops.float_linear`. ``convert`` takes it for what it is, a linear layer.
    Under autocast the input is cast, as in ``BitLinear``, and the weights stay as they are.
    """

    def forward(self, input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Map (..., K) to (..., N).

        Args:
            input: (..., in_features).
            dtype: Of the output, which is rounded to it once; the input's if None.

        Raises:
            ShapeError: The input does not have ``in_features`` columns.
            DTypeError: Input or weights are of a dtype that the op does not take.
        """
        check_features(input, self.in_features)
        y: Tensor = float_linear(autocast_input(input), self.weight, self.bias, dtype)
        return y


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether ``module`` is a float linear layer whose forward is known."""
    return type(module) in (nn.Linear, FloatLinear)
