"""The ops that have Metal kernels, as the tests expect them."""

BIT_EXACT = (
    "attention",
    "bit_linear",
    "bit_linear_prepacked",
    "float_linear",
    "glu",
    "glu_norm_quantize",
    "int8_linear",
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
    "ternary_linear",
    "top_k",
    "unpack_codes",
    "weight_codes_match",
)

# Float sums whose order is the backend's own: within a bound, not to the bit.
BOUNDED = ("ternary_linear_grad_input", "ternary_linear_grad_weight")
KERNELS = [*BIT_EXACT, *BOUNDED, "screened_top_k"]
