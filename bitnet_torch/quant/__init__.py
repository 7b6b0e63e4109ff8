"""Quantisers of weights and activations: which integers stand for which floats."""

from bitnet_torch.quant.calibrated import quantize_on_data
from bitnet_torch.quant.data_free import TWN, Absmean, Absmedian, Binary, ExactL2
from bitnet_torch.quant.learnable import LSQ, SEQ, SEQ2, LearnableQuantizer
from bitnet_torch.quant.metrics import WeightError, weight_error
from bitnet_torch.quant.post_training import Alternating, Asymmetric
from bitnet_torch.quant.registry import QUANTIZERS, make_quantizer
from bitnet_torch.quant.weight import QuantizedWeight, WeightQuantizer

__all__ = [
    "LSQ",
    "QUANTIZERS",
    "SEQ",
    "SEQ2",
    "TWN",
    "Absmean",
    "Absmedian",
    "Alternating",
    "Asymmetric",
    "Binary",
    "ExactL2",
    "LearnableQuantizer",
    "QuantizedWeight",
    "WeightError",
    "WeightQuantizer",
    "make_quantizer",
    "quantize_on_data",
    "weight_error",
]
