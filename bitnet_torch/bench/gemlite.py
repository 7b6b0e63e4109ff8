"""gemlite's product of int8 activations and 2-bit codes, beside which ours is timed on a GPU.

An optional library. Its layer quantises each token, multiplies and scales, as ``bit_linear`` does,
but with its own roundings; it tunes itself in its first call, which nobody times.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from bitnet_torch.diagnostics import require

NAME = "gemlite A8W158"
EXTRA = "gpu-peers"
# What it wants sizes to be multiples of.
_MULTIPLE = 128


def is_installed() -> bool:
    """Return whether it can be imported."""
    return find_spec("gemlite") is not None


def serves(n: int, k: int) -> bool:
    """Return whether it is here and takes a layer of N outputs and K inputs."""
    return is_installed() and n % _MULTIPLE == 0 and k % _MULTIPLE == 0


def layer(t: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return its layer of codes -1, 0, 1 (N, K) with one scale, on their device.

    Raises:
        MissingDependencyError: It is not installed.
    """
    helper = require("gemlite.helper", extra=EXTRA)
    made = helper.A8W158_INT_dynamic(device=str(t.device), dtype=dtype)
    found: Callable[[Tensor], Tensor] = made.from_weights(t.to(dtype), w_scale)
    return found
