// Contract: bitnet_torch/ops/rms_norm_quantize.py.
#include "quantize_rows.metal"

QUANTIZE_ROWS("rms_norm_quantize", float, NO_GATE)
QUANTIZE_ROWS("rms_norm_quantize", half, NO_GATE)
QUANTIZE_ROWS("rms_norm_quantize", bfloat, NO_GATE)
