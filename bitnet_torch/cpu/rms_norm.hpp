// The numbers of one normalised row, shared by the instruction sets.
#pragma once
#include "number.hpp"

namespace bitnet {
namespace {

// From 2^63 on, as bits: infinity and NaN are larger still.
constexpr uint32_t kLargestNormBits = 0x5f000000u;
constexpr int kTermBits = 22, kSmallestNormExponent = -40;

// 2^exponent; the exponents here are those of normal numbers.
BITNET_INLINE float power_of_two(int exponent) { return float_of(static_cast<uint32_t>(exponent + 127) << 23); }

struct NormPoint {
    int exponent;  // of the largest magnitude
    float power;   // a term is rne(x * power), at most 2^22
};
BITNET_INLINE NormPoint norm_point(uint32_t max_bits) {
    const int found = static_cast<int>(max_bits >> 23) - 126;  // a subnormal's is below the smallest
    const int exponent = found < kSmallestNormExponent ? kSmallestNormExponent : found;
    return {exponent, power_of_two(kTermBits - exponent)};
}
// From the exact sum of squares to 1 / sqrt(mean + eps): each line is one rounding.
BITNET_INLINE float inverse_rms(int64_t sum, int64_t K, int exponent, float eps) {
    const float mean = static_cast<float>(sum) / static_cast<float>(K);
    const float mean_square = mean * power_of_two(2 * (exponent - kTermBits));
    const float shifted = mean_square + eps;
    const float root = std::sqrt(shifted);
    return 1.0f / root;
}
BITNET_INLINE int64_t square_term(float x, float power) {
    const int64_t u = round_to_int(x * power);
    return u * u;
}
BITNET_INLINE float normalised(float x, float inverse, float weight, DType rounded) {
    const float scaled = round_to(rounded, x * inverse);
    return round_to(rounded, weight * scaled);
}
// A row with a number that has no norm must not look plausible.
BITNET_INLINE void poison_norm(float* y, int64_t K) {
    for (int64_t k = 0; k < K; ++k) y[k] = float_of(kQuietNaNBits);
}

}  // namespace
}  // namespace bitnet
