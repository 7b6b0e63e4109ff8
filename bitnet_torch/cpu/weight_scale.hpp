// The scale of a weight matrix or of its rows, for the ops that ternarise. Contract: ops/quantize_weight.py.
#pragma once
#include "isa.hpp"

namespace bitnet {

// From all `count` weights, on threads. kBadValue: a weight is not finite.
int matrix_scale(const void* w, DType dtype, int64_t count, float* w_scale, int threads);
// One scale for each of N rows, on threads.
int row_scales(const void* w, DType dtype, int64_t N, int64_t K, float* w_scale, int threads);
// What a weight costs, as in useful_threads.
constexpr int64_t kWeightWork = 32;

}  // namespace bitnet
