// What float_linear shares with the ops that score single rows again: the job, the order, the epilogue.
//
// Order: eight lanes, lane i takes the columns 8 s + i by fused multiply-adds, s ascending; then the tree of
// reduce_lanes(). Contract: bitnet_torch/ops/float_linear.py. Unnamed namespace: see number.hpp.
#pragma once
#include "isa.hpp"
#include "number.hpp"

namespace bitnet {

constexpr int64_t kFloatLanes = 8;

namespace {

BITNET_INLINE int64_t padded_floats(int64_t K) { return (K + kFloatLanes - 1) / kFloatLanes * kFloatLanes; }

BITNET_INLINE const void* weight_row(const FloatJob& job, int64_t n) {
    return static_cast<const char*>(job.w) + n * job.K * (job.w_dtype == kFloat32 ? 4 : 2);
}
BITNET_INLINE void store_float_output(const FloatJob& job, int64_t m, int64_t n, float acc) {
    const float value = job.bias == nullptr ? acc : acc + load_float(job.bias, job.bias_dtype, n);
    store_float(job.y, job.y_dtype, m * job.N + n, value);
}

}  // namespace
}  // namespace bitnet
