"""The keys and values of every token seen so far, in memory that is claimed once.

The storage is one tensor (layers, 2, B, kv_heads, length, head_dim): a cache that fits when
generation starts cannot run out of memory later, and nothing is copied as it grows. One
forward pass writes the new tokens of all layers and then calls :meth:`KVCache.advance`, so
an exception halfway leaves the cache as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet_torch.errors import ConfigurationError, GenerationError
from bitnet_torch.models.config import ModelConfig


class KVCache:
    """Room for the keys and values of ``batch`` sequences of ``length`` tokens.

    Args:
        config: The model's sizes.
        batch: Number of sequences B.
        length: Number of tokens, padding included.
        device: Where the storage lies.
        dtype: Dtype of keys and values, the model's own.

    Attributes:
        filled: Tokens written so far, the same for every sequence.
        mask: (B, length) bool, True where a token is not padding.

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
        shape = (batch, config.num_key_value_heads, length, config.head_dim)
        layers = config.num_hidden_layers
        self._storage = torch.zeros((layers, 2, *shape), device=device, dtype=dtype)
        self.mask = torch.zeros((batch, length), dtype=torch.bool, device=device)
        self.filled = 0

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.mask.shape[0]

    @property
    def length(self) -> int:
        """Number of tokens there is room for."""
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self._storage.nbytes

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

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put new tokens after those already there, for one layer.

        Args:
            layer: Index of the decoder layer.
            keys: (B, kv_heads, T, head_dim), rotated.
            values: Same shape.

        Returns:
            Views (B, kv_heads, filled + T, head_dim) of all keys and all values.
        """
        end = self.filled + keys.shape[2]
        all_keys, all_values = self._storage[layer, :, :, :, :end]
        all_keys[:, :, self.filled :] = keys
        all_values[:, :, self.filled :] = values
        return all_keys, all_values

    def advance(self, mask: Tensor) -> None:
        """Count the tokens that every layer has just written; ``mask`` (B, T) marks real ones."""
        end = self.filled + mask.shape[1]
        self.mask[:, self.filled : end] = mask
        self.filled = end
