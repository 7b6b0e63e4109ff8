"""A decoder's layers in one call of its backend: the only place that decides.

The way through Python and PyTorch to eight ops a layer takes longer than a small step of a packed
model itself, so a backend may run all layers at once (:mod:`bitnet_torch.ops.decoder_step`), with
the same bits. It is asked in inference, for few tokens and a cache, when the decoder is ours and
packed throughout, and nobody watches or changes what flows inside: no hooks, no replaced
``forward``, no autocast, no compiler, no dispatch mode, no other backend forced. Anything else
runs layer by layer.

What a decoder is made of may change between two calls: a hook, another layer, weights that moved.
So what was found is compared with what is there, in every call; values are read anew anyway.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from bitnet_torch.models.cache import KVCache
from bitnet_torch.models.native_weights import Unfit, weights_of
from bitnet_torch.nn._autocast import in_autocast
from bitnet_torch.ops._registry import forced_backend
from bitnet_torch.ops.decoder_step import Backend, CacheViews, Runner, decoder_step_on

logger = logging.getLogger(__name__)


def run_native(
    decoder: nn.Module, input_ids: Tensor, first: Tensor | None, cache: KVCache | None
) -> Tensor | None:
    """Return the normalised hidden states (B, T, hidden), or None if the layers must run.

    Args:
        decoder: A :class:`bitnet_torch.models.transformer.Decoder`, or what stands for one.
        input_ids: (B, T), checked.
        first: (B,) index of each sequence's first token; None means 0.
        cache: With room for the tokens.
    """
    backend = decoder_step_on(input_ids.device.type)
    if backend is None or cache is None or first is None:
        return None
    if not 0 < input_ids.numel() <= backend.most or not _may_run(backend, input_ids.device.type):
        return None
    plan = _PLANS.get(decoder)
    if plan is None or not plan.is_current():
        plan = _PLANS[decoder] = _Plan(decoder, backend)
    if plan.runner is None or cache.dtype not in plan.held or plan.is_watched():
        return None
    return plan.runner(input_ids, CacheViews(cache.storage, cache.scales, cache.start, first))


def _may_run(backend: Backend, device: str) -> bool:
    """Return whether this is inference that nobody looks into."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or forced_backend() not in (None, backend.name)
        or in_autocast(device)
        or torch._C._len_torch_dispatch_stack()
        or _has_any_global_hook()
    )


class _Plan:
    """What a decoder was found to be, and what runs it.

    Attributes:
        runner: None if it must run layer by layer.
        held: Dtypes that the cache may have.
    """

    def __init__(self, decoder: nn.Module, backend: Backend) -> None:
        modules = list(decoder.modules())
        # These dictionaries are filled and emptied, not replaced.
        self._own = [vars(m) for m in modules]
        self._hooks = [vars(m)[kind] for m in modules for kind in _HOOKS]
        self._holders: list[tuple[dict[str, Any], str, object]] = [
            (held, name, what)
            for m in modules
            for held in (m._modules, m._parameters, m._buffers)
            for name, what in held.items()
        ]
        # Settings that the runner has copied.
        self._holders += [(own, k, own[k]) for own in self._own for k in _SETTINGS if k in own]
        self._parameters = list(decoder.parameters())
        self._state = self._state_now()
        self.runner: Runner | None = None
        self.held: tuple[torch.dtype, ...] = ()
        try:
            weights = weights_of(decoder, backend.layout)
        except Unfit as why:
            logger.debug("a decoder runs op by op: %s", why)
            return
        self.runner, self.held = backend.make(weights), (weights.embedding.dtype, torch.int8)

    def _state_now(self) -> list[object]:
        # ``.to`` gives a parameter other data, a buffer's place another tensor.
        return [p.data_ptr() for p in self._parameters] + [p.dtype for p in self._parameters]

    def is_current(self) -> bool:
        """Return whether modules and tensors are those that were found."""
        # Lists: a generator takes twice as long, for hundreds of modules in every token.
        return self._state_now() == self._state and all(
            [held.get(name) is what for held, name, what in self._holders]
        )

    def is_watched(self) -> bool:
        """Return whether calling a module might do more than its class's ``forward``."""
        return any(self._hooks) or any(["forward" in own for own in self._own])


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SETTINGS = ("eps", "activation", "head_dim")
# By identity of the decoder: neither a copy nor a pickle of it has addresses in it.
_PLANS: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()
