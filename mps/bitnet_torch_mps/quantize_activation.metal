// Contract: bitnet_torch/ops/quantize_activation.py.
#include "quantize_rows.metal"

QUANTIZE_ROWS("quantize_activation", float, NO_GATE)
QUANTIZE_ROWS("quantize_activation", half, NO_GATE)
QUANTIZE_ROWS("quantize_activation", bfloat, NO_GATE)
