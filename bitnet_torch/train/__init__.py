"""Training: a configuration, a trainer that survives kills, distillation, honest evaluation."""

from bitnet_torch.train.codes import cache_codes
from bitnet_torch.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from bitnet_torch.train.distill import distill
from bitnet_torch.train.distillation import Distillation, DistillationConfig
from bitnet_torch.train.evaluate import bits_per_byte
from bitnet_torch.train.result import RunResult
from bitnet_torch.train.trainer import train

__all__ = [
    "Distillation",
    "DistillationConfig",
    "OptimizerConfig",
    "RunResult",
    "ScheduleConfig",
    "TrainConfig",
    "bits_per_byte",
    "cache_codes",
    "distill",
    "train",
]
