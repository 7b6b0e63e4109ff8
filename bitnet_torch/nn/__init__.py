"""Modules: BitLinear trains, PackedBitLinear infers, convert and pack lead from one to the next."""

from bitnet_torch.nn.accelerate import AcceleratedLayer, AccelerateReport, accelerate
from bitnet_torch.nn.bit_linear import BitLinear
from bitnet_torch.nn.convert import ConversionReport, Skipped, convert
from bitnet_torch.nn.float_linear import FloatLinear, is_plain_linear
from bitnet_torch.nn.normed_linear import NormedLinear, with_norm
from bitnet_torch.nn.pack import PackedLayer, PackReport, pack
from bitnet_torch.nn.packed_bit_linear import PackedBitLinear

__all__ = [
    "AccelerateReport",
    "AcceleratedLayer",
    "BitLinear",
    "ConversionReport",
    "FloatLinear",
    "NormedLinear",
    "PackReport",
    "PackedBitLinear",
    "PackedLayer",
    "Skipped",
    "accelerate",
    "convert",
    "is_plain_linear",
    "pack",
    "with_norm",
]
