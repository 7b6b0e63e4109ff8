// Number formats in portable code: bfloat16, float16 and rounding to integers.
//
// Everything is in an unnamed namespace on purpose. This header is included by files that are compiled with
// different instruction sets; an ordinary inline function would be merged by the linker, and the copy that
// survives might be the AVX2 one, which then runs on a machine without AVX2.
#pragma once
#include <cmath>
#include <cstring>

#include "common.hpp"

namespace bitnet {
namespace {

BITNET_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
BITNET_INLINE float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

constexpr uint32_t kAbsMask = 0x7fffffffu;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kQuietNaNBits = 0x7fc00000u;

BITNET_INLINE float bfloat16_to_float(uint16_t half) { return float_of(uint32_t{half} << 16); }

// Round to nearest even by adding just under half an ulp; an overflow carries into the exponent and gives infinity.
BITNET_INLINE uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & kAbsMask) > kInfinityBits) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

BITNET_INLINE float float16_to_float(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16;
    const uint32_t exponent = (half >> 10) & 31u, mantissa = half & 0x3ffu;
    if (exponent == 31) return float_of(sign | kInfinityBits | mantissa << 13);
    if (exponent != 0) return float_of(sign | (exponent + 112u) << 23 | mantissa << 13);
    return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));
}

BITNET_INLINE uint16_t float_to_float16(float value) {
    const uint32_t bits = bits_of(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    uint32_t a = bits & kAbsMask;
    if (a > kInfinityBits) return 0x7e00;
    if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
    if (a >= 0x38800000u) {                                              // 2^-14: normal in float16
        a += 0xfffu + ((a >> 13) & 1u);
        return static_cast<uint16_t>(sign | (a - 0x38000000u) >> 13);
    }
    const uint32_t exponent = a >> 23;
    if (exponent < 102) return sign;  // below 2^-25, half of the smallest subnormal
    const uint32_t mantissa = (a & 0x7fffffu) | 0x800000u, shift = 126u - exponent;
    const uint32_t rest = mantissa & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    const uint32_t kept = mantissa >> shift;
    return static_cast<uint16_t>(sign | (kept + (rest > half || (rest == half && (kept & 1u)))));
}

BITNET_INLINE float load_float(const void* base, DType dtype, int64_t i) {
    if (dtype == kFloat32) return static_cast<const float*>(base)[i];
    const uint16_t half = static_cast<const uint16_t*>(base)[i];
    return dtype == kBFloat16 ? bfloat16_to_float(half) : float16_to_float(half);
}
BITNET_INLINE void store_float(void* base, DType dtype, int64_t i, float value) {
    if (dtype == kFloat32)
        static_cast<float*>(base)[i] = value;
    else
        static_cast<uint16_t*>(base)[i] = dtype == kBFloat16 ? float_to_bfloat16(value) : float_to_float16(value);
}
BITNET_INLINE float round_to(DType dtype, float value) {
    if (dtype == kBFloat16) return bfloat16_to_float(float_to_bfloat16(value));
    if (dtype == kFloat16) return float16_to_float(float_to_float16(value));
    return value;
}

// Ties to even: the kernels run in the default rounding mode (threads.hpp sets it). |value| <= 2^30.
BITNET_INLINE int32_t round_to_int(float value) { return static_cast<int32_t>(std::lrint(value)); }

// The output of one (token, row): each line is one rounding of the specification and stays its own operation.
BITNET_INLINE void store_output(void* y, DType dtype, int64_t i, int32_t acc, float x_scale, float w_scale,
                                const void* bias, DType bias_dtype, int64_t n) {
    const float scale = x_scale * w_scale;
    float value = static_cast<float>(acc) * scale;
    if (bias != nullptr) {
        value = round_to(dtype, value);
        value = value + load_float(bias, bias_dtype, n);
    }
    store_float(y, dtype, i, value);
}

}  // namespace
}  // namespace bitnet
