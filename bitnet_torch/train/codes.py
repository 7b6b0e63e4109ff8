"""Ternarise once per optimizer step: :func:`cache_codes`."""

from __future__ import annotations

import torch
from torch import nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import BitLinear
from bitnet_torch.nn.code_cache import CodeCache, register


def cache_codes(model: nn.Module, *optimizers: torch.optim.Optimizer) -> CodeCache:
    """Let the BitLinear layers of ``model`` keep their codes between two optimizer steps.

    Worth its while where a step has several forward passes: gradient accumulation,
    checkpointing, evaluation. No result changes by a bit, whoever writes to a weight and
    however: see :mod:`bitnet_torch.nn.code_cache`, which also says what it costs.

    Args:
        model: Its layers as they are now; layers converted later are not served.
        *optimizers: Those that change the weights, at least one.

    Returns:
        The cache, whose ``remove()`` undoes this.

    Raises:
        ConfigurationError: There is no BitLinear or no optimizer, or a layer has a cache.

    Example::

        cache = bt.train.cache_codes(model, optimizer)
    """
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    if not layers:
        raise ConfigurationError(f"no BitLinear in {type(model).__name__}; convert it first")
    if not optimizers or not all(isinstance(o, torch.optim.Optimizer) for o in optimizers):
        kinds = ", ".join(type(o).__name__ for o in optimizers) or "none"
        raise ConfigurationError(f"needs at least one torch.optim.Optimizer, got {kinds}")
    cache = CodeCache()
    register(cache, layers)
    for optimizer in optimizers:
        cache.follow(optimizer)
    return cache
