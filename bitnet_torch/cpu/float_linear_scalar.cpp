// Float product, portable: the order of the contract in plain loops.
#include "float_linear.hpp"

namespace bitnet {
namespace {

float reduce_lanes(const float l[kFloatLanes]) {
    const float t0 = l[0] + l[4], t1 = l[1] + l[5], t2 = l[2] + l[6], t3 = l[3] + l[7];
    const float even = t0 + t2, odd = t1 + t3;
    return even + odd;
}

}  // namespace

namespace scalar {

float float_dot(const float* x, const void* w, DType dtype, int64_t K) {
    float lane[kFloatLanes] = {};
    // std::fma is one rounding on every machine, in hardware or not. Past K both factors are +0.
    for (int64_t k = 0; k < padded_floats(K); ++k)
        lane[k % kFloatLanes] = std::fma(x[k], k < K ? load_float(w, dtype, k) : 0.0f, lane[k % kFloatLanes]);
    return reduce_lanes(lane);
}

void float_rows(const FloatJob& job, int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n)
        for (int64_t m = 0; m < job.tokens; ++m) {
            const void* w = weight_row(job, n);
            store_float_output(job, m, n, float_dot(job.x + m * job.x_stride, w, job.w_dtype, job.K));
        }
}

}  // namespace scalar
}  // namespace bitnet
