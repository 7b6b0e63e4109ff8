"""The functional API: every op with its contract in the file of its name."""

from bitnet_torch.ops._registry import (
    all_ops,
    available_backends,
    serving_backend,
    use_backend,
)
from bitnet_torch.ops.attention import attention
from bitnet_torch.ops.backends import load_backends
from bitnet_torch.ops.bit_linear import bit_linear, bit_linear_prepacked
from bitnet_torch.ops.float_linear import float_linear
from bitnet_torch.ops.glu import glu
from bitnet_torch.ops.glu_norm_quantize import glu_norm_quantize
from bitnet_torch.ops.int8_linear import int8_linear
from bitnet_torch.ops.multi_ternary_linear import multi_ternary_linear
from bitnet_torch.ops.pack_codes import pack_codes, unpack_codes
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.quantize_head import quantize_head
from bitnet_torch.ops.quantize_pack_weight import quantize_pack_weight
from bitnet_torch.ops.quantize_weight import quantize_weight
from bitnet_torch.ops.rms_norm import rms_norm
from bitnet_torch.ops.rms_norm_quantize import rms_norm_quantize
from bitnet_torch.ops.rope import rope
from bitnet_torch.ops.rope_kv_write import rope_kv_write
from bitnet_torch.ops.screened_top_k import head_bounds, screened_top_k
from bitnet_torch.ops.ternary_linear import ternary_linear
from bitnet_torch.ops.ternary_linear_grad_input import ternary_linear_grad_input
from bitnet_torch.ops.ternary_linear_grad_weight import ternary_linear_grad_weight
from bitnet_torch.ops.top_k import top_k
from bitnet_torch.ops.weight_codes_match import weight_codes_match

__all__ = [
    "all_ops",
    "attention",
    "available_backends",
    "bit_linear",
    "bit_linear_prepacked",
    "float_linear",
    "glu",
    "glu_norm_quantize",
    "head_bounds",
    "int8_linear",
    "load_backends",
    "multi_ternary_linear",
    "pack_codes",
    "quantize_activation",
    "quantize_head",
    "quantize_pack_weight",
    "quantize_weight",
    "rms_norm",
    "rms_norm_quantize",
    "rope",
    "rope_kv_write",
    "screened_top_k",
    "serving_backend",
    "ternary_linear",
    "ternary_linear_grad_input",
    "ternary_linear_grad_weight",
    "top_k",
    "unpack_codes",
    "use_backend",
    "weight_codes_match",
]

load_backends()
