// The exp of silu and attention, as bitnet_torch/ops/glu.py spells it.
#pragma once
#include "number.hpp"

namespace bitnet {
namespace {

constexpr float kLowestExponent = -86.0f, kHighestExponent = 104.0f;  // exp is 0 beside 1, and infinite, outside
constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kExp[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                          4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

// Its own exp, because a library's differs from machine to machine and between a vector and its tail.
BITNET_INLINE float exponential(float v) {
    v = v > kLowestExponent ? v : kLowestExponent;  // NaN becomes a number here and NaN again in the quotient
    v = v < kHighestExponent ? v : kHighestExponent;
    const int n = round_to_int(v * kLog2E);
    const float turns = static_cast<float>(n);
    const float high = v - turns * kLn2High;
    const float r = high - turns * kLn2Low;
    float p = kExp[0];
    for (int i = 1; i < 6; ++i) p = p * r + kExp[i];
    p = p * (r * r) + r;
    p = p + 1.0f;
    const int half = n >> 1;  // in two steps: 2^n itself may be beyond float32
    p = p * float_of(static_cast<uint32_t>(half + 127) << 23);
    return p * float_of(static_cast<uint32_t>(n - half + 127) << 23);
}

}  // namespace
}  // namespace bitnet
