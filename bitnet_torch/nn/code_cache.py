"""Codes that outlive a forward pass: made once per optimizer step, proven before each use.

A layer's codes are a function of its latent weight, and PyTorch does not tell of every way to
change a weight. Version counters see in-place operators, ``load_state_dict`` and the foreach
kernels of an optimizer; they do not see writes through ``w.data``, a NumPy view, another
process's shared memory or a pointer, and averages of weights are often swapped in by just
these. So nothing that is kept is used on trust:

- **When something is kept.** Between two steps of the optimizers that were named, that is from
  the end of one ``step()`` to the beginning of the next, when nobody is expected to change a
  weight. A step drops what is kept before it begins, and nothing is kept until it has ended, so
  a closure that ``step`` calls, or an exception inside, finds nothing.
- **When it is used.** After :func:`~bitnet_torch.ops.weight_codes_match` has read the weight as it
  is now and has found that quantising it would give exactly these codes and this scale. That
  is the definition of "not stale", without a case that it misses; anything else that happened
  to the weight in between, seen or unseen, ends in new codes.
- **Where.** On the CPU. On a GPU the host would wait for the answer, which costs more than
  quantising again. Not in compiled code, whose graphs must not depend on what is kept; there,
  and under no cache at all, each forward pass quantises.

What it saves: the second and later forward passes of a step (gradient accumulation, the
recomputation of checkpointing, evaluation between steps) read a weight once instead of twice and
write no codes, and all their graphs hold one copy of the codes. It cannot save more: a check
that does not read the weight would miss a write, and reading is most of what quantising
costs. In return the codes, a sixteenth of a float32 weight, stay allocated between steps.

Nothing is kept on the layer: copies, pickles and ``state_dict`` of a layer never hold codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.ops.quantize_pack_weight import quantize_pack_weight
from bitnet_torch.ops.weight_codes_match import weight_codes_match

Codes = tuple[Tensor, Tensor]

_CACHES: WeakKeyDictionary[nn.Module, CodeCache] = WeakKeyDictionary()


class CodeCache:
    """What :func:`cache_codes` returns: the codes that some layers hold between two steps.

    A context manager: leaving the block calls :meth:`remove`.

    Attributes:
        quantised: How often a weight was ternarised for a layer of this cache.
        reused: How often kept codes were proven and used.
    """

    def __init__(self) -> None:
        self.quantised = 0
        self.reused = 0
        self._open = True
        self._held: WeakKeyDictionary[nn.Module, Codes] = WeakKeyDictionary()
        self._hooks: list[RemovableHandle] = []

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop what is held before each step of ``optimizer``, and hold again after it."""
        self._hooks.append(optimizer.register_step_pre_hook(self._close))
        self._hooks.append(optimizer.register_step_post_hook(self._reopen))

    def codes(self, layer: nn.Module, weight: Tensor, granularity: str) -> Codes:
        """Return ``quantize_pack_weight(weight, granularity)``, from before if that is proven."""
        held = self._held.get(layer)
        if held is not None and _fits(weight, held, granularity):
            self.reused += 1
            return held
        made = quantize_pack_weight(weight, granularity)
        self.quantised += 1
        # What inference mode makes cannot be saved for a backward pass later.
        if self._open and not made[0].is_inference():
            self._held[layer] = made
        return made

    def remove(self) -> None:
        """Drop everything and leave layers and optimizers as they were before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._held.clear()
        for layer in [layer for layer, cache in _CACHES.items() if cache is self]:
            del _CACHES[layer]

    def __enter__(self) -> CodeCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _close(self, optimizer: torch.optim.Optimizer, *step: Any) -> None:
        self._open = False
        self._held.clear()

    def _reopen(self, optimizer: torch.optim.Optimizer, *step: Any) -> None:
        self._open = True


def cached(layer: nn.Module, weight: Tensor) -> CodeCache | None:
    """Return the cache that may serve ``weight`` of ``layer`` now, if there is one."""
    # A subclass of Tensor (of a sharded parameter, say) has ways of its own to be read.
    if torch.compiler.is_compiling() or type(weight) is not Tensor or weight.device.type != "cpu":
        return None
    return _CACHES.get(layer)


def register(cache: CodeCache, layers: Sequence[nn.Module]) -> None:
    """Let ``cache`` serve ``layers``.

    Raises:
        ConfigurationError: A layer has a cache already.
    """
    if taken := [layer for layer in layers if layer in _CACHES]:
        raise ConfigurationError(
            f"{len(taken)} of these {len(layers)} layers have a code cache already; "
            "remove() the other one first"
        )
    _CACHES.update((layer, cache) for layer in layers)


def _fits(weight: Tensor, held: Codes, granularity: str) -> bool:
    packed, w_scale = held
    n, k = weight.shape
    shape = (n,) if granularity == "row" else ()
    same_shape = packed.shape == (-(-n // 4), k) and w_scale.shape == shape
    return same_shape and bool(weight_codes_match(weight, packed, w_scale, granularity))
