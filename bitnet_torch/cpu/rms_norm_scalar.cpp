// RMSNorm of a row, portable.
#include "rms_norm.hpp"

#include "isa.hpp"

namespace bitnet {
namespace scalar {

void norm_row(const void* x, DType dtype, const float* weight, int64_t K, float eps, DType rounded, float* y) {
    uint32_t max_bits = 0;
    for (int64_t k = 0; k < K; ++k) {
        const uint32_t bits = bits_of(load_float(x, dtype, k)) & kAbsMask;
        max_bits = bits > max_bits ? bits : max_bits;
    }
    if (max_bits >= kLargestNormBits) return poison_norm(y, K);
    const NormPoint point = norm_point(max_bits);
    int64_t sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += square_term(load_float(x, dtype, k), point.power);
    const float inverse = inverse_rms(sum, K, point.exponent, eps);
    for (int64_t k = 0; k < K; ++k) y[k] = normalised(load_float(x, dtype, k), inverse, weight[k], rounded);
}

}  // namespace scalar
}  // namespace bitnet
