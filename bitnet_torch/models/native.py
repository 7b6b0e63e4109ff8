"""A decoder's layers in one call of its backend: the only place that decides.

The way through Python and PyTorch to eight ops a layer takes longer than a small step of a packed
model itself, so a backend may run all layers at once (:mod:`bitnet_torch.ops.decoder_step`), with
the same bits. It is asked in inference, for few tokens and a cache, when the decoder is ours and
packed throughout, and nobody watches or changes what flows inside: no hooks, no replaced
``forward``, no autocast, no compiler, no dispatch mode, no other backend forced. Anything else
runs layer by layer.

What a decoder is made of may change between two calls (:mod:`bitnet_torch.models.module_state`);
values are read anew anyway.
"""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bitnet_torch.models.cache import KVCache
from bitnet_torch.models.module_state import ModuleState, is_plain_inference
from bitnet_torch.models.native_weights import Unfit, weights_of
from bitnet_torch.models.sparsity import Sparsity, is_by_neuron, sparsity_of
from bitnet_torch.ops.decoder_step import (
    Backend,
    CacheViews,
    DecoderWeights,
    Runner,
    decoder_step_on,
)

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
    if not 0 < input_ids.numel() <= backend.most or not is_plain_inference(
        backend.name, input_ids.device.type
    ):
        return None
    choice = sparsity_of(decoder)
    if input_ids.numel() > 1 and not _ready_for_several(decoder, backend, choice):
        return None
    plan = _plan(decoder, backend)
    if plan.runner is None or plan.weights is None or cache.dtype not in plan.held:
        return None
    if plan.state.is_watched():
        return None
    live = choice.counter(plan.weights, backend) if input_ids.numel() == 1 else None
    views = CacheViews(cache.storage, cache.scales, cache.start, first)
    out = plan.runner(input_ids, views, live)
    if live is not None and (turns := choice.seen(decoder, live, backend)):
        # The plan goes first: it holds the matrices as they were.
        del plan
        _PLANS.pop(decoder, None)
        choice.turn(turns)
    return out


def _plan(decoder: nn.Module, backend: Backend) -> _Plan:
    plan = _PLANS.get(decoder)
    if plan is None or not plan.state.is_current():
        plan = _PLANS[decoder] = _Plan(decoder, backend)
    return plan


def _ready_for_several(decoder: nn.Module, backend: Backend, choice: Sparsity) -> bool:
    """Return whether no matrix lies in an order for one token, after trying to make it so."""
    weights = _plan(decoder, backend).weights
    if weights is None or not is_by_neuron(weights, backend):
        return True
    del weights
    _PLANS.pop(decoder, None)
    return choice.make_dense(decoder, backend)


def reason_against_native(decoder: nn.Module, device: str) -> str:
    """Return why a small step of ``decoder`` would run op by op now; empty if in one call."""
    backend = decoder_step_on(device)
    if backend is None:
        return f"no backend runs decoder steps on {device}"
    if not is_plain_inference(backend.name, device):
        return "this is no inference, or somebody looks into it"
    plan = _Plan(decoder, backend)
    return plan.reason or ("a module is watched or replaced" if plan.state.is_watched() else "")


class _Plan:
    """What a decoder was found to be, and what runs it.

    Attributes:
        state: Tells whether it still is.
        runner: None if it must run layer by layer.
        reason: Why it must; empty if it need not.
        weights: What the runner was made of.
        held: Dtypes that the cache may have.
    """

    def __init__(self, decoder: nn.Module, backend: Backend) -> None:
        self.state = ModuleState(decoder)
        self.runner: Runner | None = None
        self.reason = ""
        self.weights: DecoderWeights | None = None
        self.held: tuple[torch.dtype, ...] = ()
        try:
            weights = weights_of(decoder, backend.layout, backend.neurons)
        except Unfit as why:
            self.reason = str(why)
            logger.debug("a decoder runs op by op: %s", why)
            return
        self.weights = weights
        self.runner, self.held = backend.make(weights), (weights.embedding.dtype, torch.int8)


# By identity of the decoder: neither a copy nor a pickle of it has addresses in it.
_PLANS: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()
