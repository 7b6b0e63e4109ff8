"""The keys and values of every token seen so far, in memory that is claimed once.

The storage is one tensor (layers, 2, B, kv_heads, length, head_dim): a cache that fits when
generation starts cannot run out of memory later, and nothing is copied or allocated as it grows.
An int8 cache holds codes, and a scale for each token and head beside them: about half of
bfloat16's bytes. One forward pass writes the new tokens of all layers and then calls
:meth:`KVCache.advance`, so an exception halfway leaves the cache as it was.

The number of tokens is known twice: on the host, for checks that wait for nothing, and as a
tensor on the device, which the ops read, so that a recorded graph can be replayed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, GenerationError
from bitnet_torch.memory.lease import Lease
from bitnet_torch.memory.pool import HybridMemoryPool
from bitnet_torch.models.config import ModelConfig
from bitnet_torch.models.padding import Run, leading_padding, runs_of


class LayerCache(NamedTuple):
    """One layer's part of a cache: views that the ops write into.

    Attributes:
        keys: (B, kv_heads, length, head_dim).
        values: Same shape.
        key_scale: (B, kv_heads, length) float32; None unless the cache is int8.
        value_scale: Same.
    """

    keys: Tensor
    values: Tensor
    key_scale: Tensor | None
    value_scale: Tensor | None


class KVCache:
    """Room for the keys and values of ``batch`` sequences of ``length`` tokens.

    Args:
        config: The model's sizes.
        batch: Number of sequences B.
        length: Number of tokens, padding included.
        device: Where the storage lies.
        dtype: Dtype of keys and values: the model's own, or ``torch.int8``.

    Attributes:
        start: () int64 on the device: ``filled``.
        first: (B,) int64 on the device: index of each sequence's first token; ``filled`` where
            there was only padding so far.

    Raises:
        ConfigurationError: ``batch`` or ``length`` is below 1.
        GenerationError: ``length`` is beyond the model's context.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if batch < 1 or length < 1:
            raise ConfigurationError(f"a cache needs batch, length >= 1, got {batch}, {length}")
        if length > config.max_position_embeddings:
            raise GenerationError(
                f"a cache of {length} tokens was asked for, but the model's context "
                f"(max_position_embeddings) is {config.max_position_embeddings}",
                length=length,
                context=config.max_position_embeddings,
            )
        slots = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, length)
        # The leases come back to the pool when the cache goes.
        self._leases = [
            _lease((*slots, config.head_dim), dtype or torch.get_default_dtype(), device)
        ]
        self._storage = self._leases[0].tensor
        self._scales: Tensor | None = None
        if dtype == torch.int8:
            self._leases.append(_lease(slots, torch.float32, device))
            self._scales = self._leases[1].tensor
        # Views are made once: making them for every layer of every token would take time.
        self._layers = [self._views(layer) for layer in range(slots[0])]
        self.start = torch.zeros((), dtype=torch.int64, device=device)
        self.first = torch.zeros(batch, dtype=torch.int64, device=device)
        self.batch, self.length = batch, length
        self._filled = 0
        self._runs = [Run(0, 0)] * batch

    def _views(self, layer: int) -> LayerCache:
        keys, values = self._storage[layer]
        if self._scales is None:
            return LayerCache(keys, values, None, None)
        return LayerCache(keys, values, *self._scales[layer])

    @property
    def filled(self) -> int:
        """Tokens written so far, padding included, the same for every sequence."""
        return self._filled

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self._storage.dtype

    @property
    def storage(self) -> Tensor:
        """Keys and values of all layers, (layers, 2, B, kv_heads, length, head_dim)."""
        return self._storage

    @property
    def scales(self) -> Tensor | None:
        """Scales of an int8 cache, (layers, 2, B, kv_heads, length) float32; else None."""
        return self._scales

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales."""
        return self._storage.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def layer(self, index: int) -> LayerCache:
        """Return the part of decoder layer ``index``."""
        return self._layers[index]

    def check_room(self, batch: int, tokens: int) -> None:
        """Raise GenerationError unless ``tokens`` more tokens of ``batch`` sequences fit."""
        if batch != self.batch:
            raise GenerationError(
                f"input_ids has {batch} sequences; the cache was made for {self.batch}"
            )
        if self.filled + tokens > self.length:
            raise GenerationError(
                f"{tokens} more tokens after {self.filled} do not fit a cache of {self.length}",
                needed=self.filled + tokens,
                length=self.length,
            )

    def first_with(self, mask: Tensor | None) -> Tensor:
        """Return what ``first`` is once new tokens are there, without adding them.

        Args:
            mask: (B, T) bool, True for the tokens among them; None if all are.

        Raises:
            GenerationError: A sequence would have padding between its tokens.
        """
        self._continued(mask, 1 if mask is None else mask.shape[1])
        if mask is None:
            return self.first
        begun = self.first < self.start
        return torch.where(begun, self.first, self.start + leading_padding(mask))

    def advance(self, tokens: int, mask: Tensor | None = None) -> None:
        """Count the ``tokens`` that every layer has just written; ``mask`` as in first_with."""
        runs, first = self._continued(mask, tokens), self.first_with(mask)
        if mask is not None:
            self.first.copy_(first)
        self._runs = runs
        self._filled += tokens
        # Added and not set: a recorded step shall count on, each time it is replayed.
        self.start.add_(tokens)

    def count_replayed(self, tokens: int) -> None:
        """Count ``tokens`` that a replayed step has written and counted on the device."""
        self._runs = self._continued(None, tokens)
        self._filled += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from index ``length`` on, for a draft that was not accepted.

        Raises:
            GenerationError: There are fewer tokens, or ``length`` is negative.
        """
        if not 0 <= length <= self.filled:
            raise GenerationError(
                f"a cache of {self.filled} tokens cannot be cut to {length}",
                filled=self.filled,
                length=length,
            )
        self._runs = [Run(min(r.begin, length), min(r.end, length)) for r in self._runs]
        self.first.clamp_(max=length)
        self._set_filled(length)

    def copy_from(self, other: KVCache, tokens: int) -> None:
        """Take over the first ``tokens`` tokens of another cache of this model; must be empty.

        Raises:
            GenerationError: The caches differ in more than their lengths, this one is not empty
                or too short, or the other holds fewer tokens.
        """
        mine, theirs = self._storage, other._storage
        same = mine.dtype == theirs.dtype and mine[..., :0, :].shape == theirs[..., :0, :].shape
        if not same or self._filled or tokens > min(self.length, other.filled):
            raise GenerationError(
                f"{tokens} tokens of a cache {tuple(theirs.shape)} {theirs.dtype} with "
                f"{other.filled} tokens do not fit one {tuple(mine.shape)} {mine.dtype} with "
                f"{self._filled}"
            )
        mine[..., :tokens, :].copy_(theirs[..., :tokens, :])
        if self._scales is not None and other._scales is not None:
            self._scales[..., :tokens].copy_(other._scales[..., :tokens])
        self._runs = [Run(min(r.begin, tokens), min(r.end, tokens)) for r in other._runs]
        self.first.copy_(other.first.clamp(max=tokens))
        self._set_filled(tokens)

    def _set_filled(self, filled: int) -> None:
        self._filled = filled
        self.start.fill_(filled)

    def _continued(self, mask: Tensor | None, tokens: int) -> list[Run]:
        """Return each sequence's run with the new tokens; refuse one that would have a hole."""
        new = [Run(0, tokens)] * self.batch if mask is None else runs_of(mask)
        return [self._joined(b, run) for b, run in enumerate(new)]

    def _joined(self, b: int, new: Run) -> Run:
        old, begin, end = self._runs[b], self.filled + new.begin, self.filled + new.end
        if old.begin == old.end:
            return Run(begin, end)
        if new.begin == new.end:
            return old
        if old.end != begin:
            raise GenerationError(
                f"sequence {b} has its tokens at {old.begin} to {old.end - 1} of the cache, and "
                f"the next one would stand at {begin}; padding between tokens is refused",
                sequence=b,
            )
        return Run(old.begin, end)


def _lease(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None) -> Lease:
    """Take memory for a cache, filled with zeros."""
    pool = HybridMemoryPool.instance()
    lease = pool.allocate(shape, dtype, device or torch.get_default_device(), tag="kv cache")
    lease.tensor.zero_()
    return lease
