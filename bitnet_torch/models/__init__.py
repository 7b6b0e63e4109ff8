"""The decoder that every checkpoint of the Llama and BitNet families loads into."""

from bitnet_torch.models.cache import KVCache
from bitnet_torch.models.config import ModelConfig
from bitnet_torch.models.transformer import CausalLM

__all__ = ["CausalLM", "KVCache", "ModelConfig"]
