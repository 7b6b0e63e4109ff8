"""The ops that have Metal kernels, as the tests expect them."""

BIT_EXACT = (
    "bit_linear",
    "bit_linear_prepacked",
    "glu",
    "glu_norm_quantize",
    "multi_ternary_linear",
    "pack_codes",
    "quantize_activation",
    "quantize_pack_weight",
    "quantize_weight",
    "rms_norm",
    "rms_norm_quantize",
    "rope",
    "ternary_linear",
    "unpack_codes",
)
