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
from bitnet_torch.ops.multi_ternary_linear import multi_ternary_linear
from bitnet_torch.ops.pack_codes import pack_codes, unpack_codes
from bitnet_torch.ops.quantize_activation import quantize_activation
from bitnet_torch.ops.quantize_pack_weight import quantize_pack_weight
from bitnet_torch.ops.quantize_weight import quantize_weight
from bitnet_torch.ops.rms_norm import rms_norm
from bitnet_torch.ops.rms_norm_quantize import rms_norm_quantize
from bitnet_torch.ops.rope import rope
from bitnet_torch.ops.rope_kv_write import rope_kv_write
from bitnet_torch.ops.ternary_linear import ternary_linear
from bitnet_torch.ops.ternary_linear_grad_input import ternary_linear_grad_input
from bitnet_torch.ops.ternary_linear_grad_weight import ternary_linear_grad_weight

__all__ = [
    "all_ops",
    "attention",
    "available_backends",
    "bit_linear",
    "bit_linear_prepacked",
    "float_linear",
    "glu",
    "glu_norm_quantize",
    "load_backends",
    "multi_ternary_linear",
    "pack_codes",
    "quantize_activation",
    "quantize_pack_weight",
    "quantize_weight",
    "rms_norm",
    "rms_norm_quantize",
    "rope",
    "rope_kv_write",
    "serving_backend",
    "ternary_linear",
    "ternary_linear_grad_input",
    "ternary_linear_grad_weight",
    "unpack_codes",
    "use_backend",
]

load_backends()
