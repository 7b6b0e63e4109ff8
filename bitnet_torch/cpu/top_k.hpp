// The selection that top_k and the screened head share. Contract: bitnet_torch/ops/top_k.py.
#pragma once
#include "isa.hpp"

namespace bitnet {

// The k best of `count` values, best first; `names` are their ids in ascending order, or null for 0, 1, 2 ...
void select_top(const Kernels& kernel, const float* x, const int64_t* names, int64_t count, int64_t k, float* values,
                int64_t* ids);

}  // namespace bitnet
