"""Text from a model: prefill, decode, sampling, streaming."""

from bitnet_torch.generate.language_model import LanguageModel
from bitnet_torch.generate.load import load
from bitnet_torch.generate.sampling import Sampling

__all__ = ["LanguageModel", "Sampling", "load"]
