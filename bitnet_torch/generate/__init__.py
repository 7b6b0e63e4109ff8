"""Text from a model: prefill, decode, sampling, streaming, guessing."""

from bitnet_torch.generate.language_model import LanguageModel
from bitnet_torch.generate.load import load
from bitnet_torch.generate.options import More
from bitnet_torch.generate.prefix_cache import PrefixCache
from bitnet_torch.generate.result import GenerationResult, TokenLogprob
from bitnet_torch.generate.sampling import Sampling

__all__ = [
    "GenerationResult",
    "LanguageModel",
    "More",
    "PrefixCache",
    "Sampling",
    "TokenLogprob",
    "load",
]
