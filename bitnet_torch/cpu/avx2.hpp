// AVX2 vocabulary of the *_avx2.cpp files. Unnamed namespace: see number.hpp.
#pragma once
#include <immintrin.h>

#include "number.hpp"

// An empty asm that "changes" an accumulator. gcc lowers the int16 additions to generic vector additions and
// re-associates the chain of one accumulator into a tree, which needs twice the registers and spills: a third of the
// speed is gone. Check the listing for (%rsp) in the inner loop when a compiler changes.
#if (defined(__GNUC__) || defined(__clang__)) && defined(__AVX2__)
#define BITNET_KEEP(v) __asm__ volatile("" : "+x"(v))
#else
#define BITNET_KEEP(v) (void)0
#endif

namespace bitnet {
namespace {

using V = __m256i;

BITNET_INLINE V load(const void* p) { return _mm256_loadu_si256(static_cast<const V*>(p)); }
BITNET_INLINE void store(void* p, V v) { _mm256_storeu_si256(static_cast<V*>(p), v); }
BITNET_INLINE V zero() { return _mm256_setzero_si256(); }
// Four activations in every 32-bit lane: a load with broadcast, no shuffle.
BITNET_INLINE V broadcast4(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
}
BITNET_INLINE int32_t horizontal_sum(V v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

struct LoadF32 {
    static BITNET_INLINE __m256 eight(const void* base, int64_t i) {
        return _mm256_loadu_ps(static_cast<const float*>(base) + i);
    }
    static constexpr DType dtype = kFloat32;
};
struct LoadBF16 {
    static BITNET_INLINE __m256 eight(const void* base, int64_t i) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(base) + i));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static constexpr DType dtype = kBFloat16;
};
struct LoadF16 {
    static BITNET_INLINE __m256 eight(const void* base, int64_t i) {
        return _mm256_cvtph_ps(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(base) + i)));
    }
    static constexpr DType dtype = kFloat16;
};

// Eight values rounded to a dtype, in the upper half of each lane for bfloat16: the integer steps of number.hpp.
BITNET_INLINE V bfloat16_bits(__m256 v) {
    const V bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const V sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const V nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(sum, _mm256_set1_epi32(static_cast<int>(kQuietNaNBits)), nan);
}
BITNET_INLINE __m128i float16_bits(__m256 v) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
template <DType dtype>
BITNET_INLINE __m256 rounded(__m256 v) {
    if constexpr (dtype == kBFloat16)
        return _mm256_castsi256_ps(_mm256_and_si256(bfloat16_bits(v), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    else if constexpr (dtype == kFloat16)
        return _mm256_cvtph_ps(float16_bits(v));
    else
        return v;
}
template <DType dtype>
BITNET_INLINE void store_eight(void* base, int64_t i, __m256 v) {
    if constexpr (dtype == kFloat32) {
        _mm256_storeu_ps(static_cast<float*>(base) + i, v);
    } else {
        __m128i half;
        if constexpr (dtype == kBFloat16) {
            const V high = _mm256_srli_epi32(bfloat16_bits(v), 16);
            half = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
        } else {
            half = float16_bits(v);
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(base) + i), half);
    }
}

BITNET_INLINE V abs_bits(__m256 v) {
    return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(static_cast<int>(kAbsMask)));
}
// The largest |x| as bits: an integer maximum, because maxps drops NaN.
template <class Load>
BITNET_INLINE uint32_t max_abs_bits(const void* x, int64_t count) {
    V m0 = zero(), m1 = zero(), m2 = zero(), m3 = zero();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        m0 = _mm256_max_epi32(m0, abs_bits(Load::eight(x, i)));
        m1 = _mm256_max_epi32(m1, abs_bits(Load::eight(x, i + 8)));
        m2 = _mm256_max_epi32(m2, abs_bits(Load::eight(x, i + 16)));
        m3 = _mm256_max_epi32(m3, abs_bits(Load::eight(x, i + 24)));
    }
    uint32_t lane[8], max = 0;
    store(lane, _mm256_max_epi32(_mm256_max_epi32(m0, m1), _mm256_max_epi32(m2, m3)));
    for (int j = 0; j < 8; ++j) max = lane[j] > max ? lane[j] : max;
    for (; i < count; ++i) {
        const uint32_t bits = bits_of(load_float(x, Load::dtype, i)) & kAbsMask;
        max = bits > max ? bits : max;
    }
    return max;
}
// 4 x 8 int32 to 32 int8, saturating, in order.
BITNET_INLINE V narrow(V a, V b, V c, V d) {
    const V order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)), order);
}
// The sum of the 4 bytes of each lane, as int32.
BITNET_INLINE V byte_sums(V v) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), v), _mm256_set1_epi16(1));
}

}  // namespace
}  // namespace bitnet
