"""Training: a configuration, a trainer that survives kills, and honest evaluation."""

from bitnet_torch.train.config import TrainConfig
from bitnet_torch.train.evaluate import bits_per_byte
from bitnet_torch.train.result import RunResult
from bitnet_torch.train.trainer import train

__all__ = ["RunResult", "TrainConfig", "bits_per_byte", "train"]
