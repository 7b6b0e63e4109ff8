// Contract: bitnet_torch/ops/glu_norm_quantize.py.
#include "quantize_rows.metal"

QUANTIZE_ROWS("glu_norm_quantize_relu2", float, RELU2)
QUANTIZE_ROWS("glu_norm_quantize_relu2", half, RELU2)
QUANTIZE_ROWS("glu_norm_quantize_relu2", bfloat, RELU2)
QUANTIZE_ROWS("glu_norm_quantize_silu", float, SILU)
QUANTIZE_ROWS("glu_norm_quantize_silu", half, SILU)
QUANTIZE_ROWS("glu_norm_quantize_silu", bfloat, SILU)
