"""Modules: BitLinear trains, PackedBitLinear infers, convert and pack lead from one to the next."""

from bitnet_torch.nn.accelerate import AcceleratedLayer, AccelerateReport, accelerate
from bitnet_torch.nn.bit_linear import BitLinear
from bitnet_torch.nn.convert import ConversionReport, Skipped, convert
from bitnet_torch.nn.float_linear import FloatLinear, is_plain_linear
from bitnet_torch.nn.forms import set_strength
from bitnet_torch.nn.hadamard_linear import HBitLinear
from bitnet_torch.nn.normed_linear import NormedLinear, with_norm
from bitnet_torch.nn.pack import PackedLayer, PackReport, pack, warn_if_averaged
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear
from bitnet_torch.nn.packed_quant_linear import PackedQuantLinear
from bitnet_torch.nn.quant_linear import QuantLinear

__all__ = [
    "AccelerateReport",
    "AcceleratedLayer",
    "BitLinear",
    "ConversionReport",
    "FloatLinear",
    "HBitLinear",
    "NormedLinear",
    "PackReport",
    "PackedBitLinear",
    "PackedLayer",
    "PackedQuantLinear",
    "QuantLinear",
    "Skipped",
    "accelerate",
    "convert",
    "is_plain_linear",
    "pack",
    "set_strength",
    "warn_if_averaged",
    "with_norm",
]
