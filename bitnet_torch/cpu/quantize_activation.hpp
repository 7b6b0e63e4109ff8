// The constants of the activation quantiser, shared by its instruction sets.
#pragma once
#include "number.hpp"

namespace bitnet {
namespace {

constexpr float kSmallestAmax = 1e-5f;
// Above 2^126 the reciprocal is subnormal. The comparison is on bits, where infinity and NaN are larger still.
constexpr uint32_t kLargestAmaxBits = 0x7e800000u;

struct ActivationScale {
    float scale, inverse;
};
BITNET_INLINE ActivationScale activation_scale(uint32_t max_bits) {
    const float max = float_of(max_bits);
    const float amax = max > kSmallestAmax ? max : kSmallestAmax;
    const float reciprocal = 1.0f / amax;  // two roundings: what PyTorch computes for 127 / amax
    return {amax / 127.0f, reciprocal * 127.0f};
}
BITNET_INLINE int8_t activation_code(float x, float inverse) {
    const int32_t v = round_to_int(x * inverse);
    return static_cast<int8_t>(v > 127 ? 127 : v < -128 ? -128 : v);
}
// A row with a number that cannot be quantised must not look plausible: its outputs become NaN.
BITNET_INLINE void poison_row(int8_t* q, int64_t K_padded, float* scale, int32_t* sum) {
    std::memset(q, 0, static_cast<size_t>(K_padded));
    *scale = float_of(kQuietNaNBits);
    *sum = 0;
}

}  // namespace
}  // namespace bitnet
