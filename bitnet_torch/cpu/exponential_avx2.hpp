// The exp of exponential.hpp, eight at a time.
#pragma once
#include "avx2.hpp"
#include "exponential.hpp"

namespace bitnet {
namespace {

BITNET_INLINE __m256 power_of_two(V exponent) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
}
BITNET_INLINE __m256 exponential(__m256 v) {
    v = _mm256_max_ps(v, _mm256_set1_ps(kLowestExponent));  // the second operand if v is NaN
    v = _mm256_min_ps(v, _mm256_set1_ps(kHighestExponent));
    const V n = _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(kLog2E)));
    const __m256 turns = _mm256_cvtepi32_ps(n);
    const __m256 high = _mm256_sub_ps(v, _mm256_mul_ps(turns, _mm256_set1_ps(kLn2High)));
    const __m256 r = _mm256_sub_ps(high, _mm256_mul_ps(turns, _mm256_set1_ps(kLn2Low)));
    __m256 p = _mm256_set1_ps(kExp[0]);
    for (int i = 1; i < 6; ++i) p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(kExp[i]));
    p = _mm256_add_ps(_mm256_mul_ps(p, _mm256_mul_ps(r, r)), r);
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    const V half = _mm256_srai_epi32(n, 1);
    p = _mm256_mul_ps(p, power_of_two(half));
    return _mm256_mul_ps(p, power_of_two(_mm256_sub_epi32(n, half)));
}

}  // namespace
}  // namespace bitnet
