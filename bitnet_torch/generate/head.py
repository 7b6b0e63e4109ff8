"""How the next token's logits are read: from the float head, an int8 head, or a screened one.

==============  ==========================================================================
``lm_head``     ``generate`` and ``stream`` choose from
==============  ==========================================================================
``"float"``     the float logits, as ``lm.model`` gives them
``"int8"``      the logits of an int8 copy of the head: near, half the bytes, by name only
``"screened"``  the float logits of the tokens that may be chosen, found with the int8 copy:
                the choice is that of ``"float"`` to the bit, for greedy and top-k sampling
                (else all float logits are read)
``"auto"``      screened where that is faster, else float
==============  ==========================================================================

``lm.model`` gives float logits whatever is chosen here. A copy that was asked for by name is made
when the model is loaded, so that its memory is claimed then; that of ``"auto"`` is made by the
first generation that reads it, since who loads a model may never generate with it. It is made
anew if the weights have changed since.

Taken to be faster: a head of 2^24 weights or more, on the CPU, at most two sequences and at most
64 tokens to choose from. Only one size of head was measured (128256 x 2560, on a CPU); 2^24 is a
judgement, not a measured crossing. A larger batch makes the float product busy with arithmetic
rather than with reading, and elsewhere than on the CPU the screened version is a first one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.generate.sampling import Sampling
from bitnet_torch.memory import HybridMemoryPool, Lease
from bitnet_torch.models import CausalLM, KVCache
from bitnet_torch.nn import FloatLinear
from bitnet_torch.ops import (
    float_linear,
    head_bounds,
    int8_linear,
    quantize_activation,
    quantize_head,
    screened_top_k,
)

logger = logging.getLogger(__name__)

HEADS = ("auto", "float", "int8", "screened")
AUTO_WEIGHTS, AUTO_BATCH, AUTO_CHOICES = 1 << 24, 2, 64
_LEAST = torch.finfo(torch.float32).min


class NextLogits(Protocol):
    """What the token loop needs of a model."""

    def new_cache(self, batch: int, length: int, dtype: str | None = None) -> KVCache:
        """Return an empty cache; see ``CausalLM.new_cache``."""
        ...

    def all_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return the logits (B, T, vocab) after every token."""
        ...

    def next_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        """Return the logits (B, vocab) after the last token; see ``CausalLM.next_logits``."""
        ...


@dataclass(frozen=True)
class _Codes:
    """An int8 head and the weights that it was made of."""

    weight: Tensor
    state: tuple[object, ...]
    h: Tensor
    h_scale: Tensor
    bounds: Tensor
    # They come back to the pool when these codes go.
    leases: tuple[Lease, ...]


class Int8Head:
    """The int8 copy of a model's float head.

    Args:
        model: Its head must be float.
        kind: ``"int8"``, ``"screened"`` or ``"auto"``.

    Raises:
        ConfigurationError: The head is not a float head.
    """

    def __init__(self, model: CausalLM, kind: str) -> None:
        self.kind = kind
        self._model = model
        weight = _float_head(model)
        self._codes: _Codes | None = None if kind == "auto" else _encode(weight)

    @property
    def nbytes(self) -> int:
        """Bytes of the copy; 0 before it is made."""
        if self._codes is None:
            return 0
        return sum(t.nbytes for t in (self._codes.h, self._codes.h_scale, self._codes.bounds))

    def serves(self, choices: int | None, batch: int) -> bool:
        """Return whether generation shall read this head.

        Never where a hook on the float head wants to see, or to change, what it gives.

        Args:
            choices: Number of tokens to choose from; None for all.
            batch: Number of sequences.
        """
        if _is_watched(self._model):
            return False
        if self.kind == "int8":
            return True
        if choices is None or self.kind == "screened":
            return choices is not None
        return batch <= AUTO_BATCH and choices <= AUTO_CHOICES

    def int8_logits(self, hidden: Tensor) -> Tensor:
        """Return approximate logits (B, vocab), float32, of hidden states (B, K)."""
        codes = self._current()
        x_q, x_scale = quantize_activation(hidden)
        return int8_linear(x_q, x_scale, codes.h, codes.h_scale, torch.float32)

    def screened_logits(self, hidden: Tensor, choices: int) -> Tensor:
        """Return (B, vocab): the largest ``choices`` float logits, and the least float32 elsewhere.

        A logit that is NaN or +inf is among the largest, so it is seen by who checks.
        """
        codes = self._current()
        k = min(choices, codes.h.shape[0])
        values, ids, _ = screened_top_k(
            hidden, codes.weight, codes.h, codes.h_scale, codes.bounds, k
        )
        if bool((values <= _LEAST).any()):
            # What is filled in could tie with it.
            return float_linear(hidden, codes.weight, None, torch.float32)
        logits = values.new_full((*hidden.shape[:-1], codes.h.shape[0]), _LEAST)
        return logits.scatter_(-1, ids, values)

    def is_current(self) -> bool:
        """Return whether the copy is there, and of the weights as they are."""
        return self._codes is not None and self._codes.state == _state(_float_head(self._model))

    def _current(self) -> _Codes:
        if self._codes is None or not self.is_current():
            logger.info("making the int8 copy of the head, which is new or has changed")
            self._codes = _encode(_float_head(self._model))
        return self._codes


class HeadedModel:
    """A model whose next logits are read from an int8 head.

    Args:
        model: Everything below the head.
        head: Its int8 copy.
        choices: Number of tokens that will be chosen from; None for all.
    """

    def __init__(self, model: CausalLM, head: Int8Head, choices: int | None) -> None:
        self._model, self._head, self._choices = model, head, choices

    @property
    def waits(self) -> bool:
        """Whether reading the head waits for the device."""
        return self._head.kind != "int8" and self._choices is not None

    def is_current(self) -> bool:
        """Return whether the next logits are read from the copy that there is."""
        return self._head.is_current()

    def new_cache(self, batch: int, length: int, dtype: str | None = None) -> KVCache:
        """Return an empty cache of the model."""
        return self._model.new_cache(batch, length, dtype)

    def all_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Return logits (B, T, vocab) to choose from, after every token."""
        hidden = self._model.all_hidden(input_ids, cache)
        return self._read(hidden.flatten(0, 1)).view(*input_ids.shape, -1)

    def next_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache
    ) -> Tensor:
        """Return logits (B, vocab) to choose from; arguments as in ``CausalLM.next_logits``."""
        return self._read(self._model.next_hidden(input_ids, attention_mask, cache))

    def _read(self, hidden: Tensor) -> Tensor:
        if self._head.kind == "int8" or self._choices is None:
            return self._head.int8_logits(hidden)
        return self._head.screened_logits(hidden, self._choices)


def make_head(model: CausalLM, kind: str) -> Int8Head | None:
    """Return the int8 head that ``lm_head=kind`` asks for; None if the float head serves.

    Raises:
        ConfigurationError: ``kind`` is unknown, or asks for codes of a head that is not float.
    """
    if kind not in HEADS:
        raise ConfigurationError(f"lm_head must be one of {HEADS}, got {kind!r}", lm_head=kind)
    if kind == "float" or (kind == "auto" and not _worth_it(model)):
        return None
    return Int8Head(model, kind)


def number_of_choices(sampling: Sampling) -> int | None:
    """Return how many of the largest logits a sampling looks at; None for all of them."""
    if sampling.repetition_penalty != 1:
        return None
    return 1 if sampling.temperature == 0 else sampling.top_k


def _worth_it(model: CausalLM) -> bool:
    if model.device.type != "cpu" or not _is_float(model.lm_head):
        return False
    return _float_head(model).numel() >= AUTO_WEIGHTS


def _is_float(head: nn.Module | None) -> bool:
    return head is None or (type(head) is FloatLinear and head.bias is None)


def _is_watched(model: CausalLM) -> bool:
    head = model.lm_head
    return head is not None and bool(head._forward_hooks or head._forward_pre_hooks)


def _float_head(model: CausalLM) -> Tensor:
    if model.lm_head is None:
        return model.model.embed_tokens.weight.detach()
    if not isinstance(model.lm_head, FloatLinear) or model.lm_head.bias is not None:
        raise ConfigurationError(
            f"lm_head is a {type(model.lm_head).__name__}; only a float head without a bias has "
            "an int8 form"
        )
    return model.lm_head.weight.detach()


def _encode(weight: Tensor) -> _Codes:
    h, h_scale = quantize_head(weight)
    made = (h, h_scale, head_bounds(weight, h, h_scale))
    pool = HybridMemoryPool.instance()
    return _Codes(weight, _state(weight), *made, tuple(pool.adopt(t, "int8 head") for t in made))


def _state(weight: Tensor) -> tuple[object, ...]:
    # A tensor made in inference mode counts no changes, and allows none outside of it.
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device
