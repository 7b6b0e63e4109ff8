// What the AVX2 ternary kernels share: the int16 limits, and the epilogue on 8 outputs at a time.
//
// Codes are 0, 1, 2 and x is in [-128, 127], so one maddubs of a code plane is at most 2 * 2 * 128 = 512 in magnitude:
// 64 of them reach exactly -32768 (and +32512), which an int16 holds. A plane that is left unshifted holds codes 0, 4, 8:
// its maddubs is at most 2048, and 16 of them fit. No sum below is longer than that before it is widened.
#pragma once
#include "avx2.hpp"
#include "isa.hpp"
#include "panel8.hpp"

namespace bitnet {
namespace {

// Of the kernels for few tokens, which multiply for so long that the distance is of no account.
constexpr int64_t kPrefetchBytes = 3072;

BITNET_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
BITNET_INLINE void multiply_add(V& sum, V codes, V x) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
    BITNET_KEEP(sum);
}
BITNET_INLINE void widen_add(V& total, V sum, V weight) {
    total = _mm256_add_epi32(total, _mm256_madd_epi16(sum, weight));
}

// rne to bfloat16 in the low half of each lane. A NaN becomes the canonical one.
BITNET_INLINE V bfloat16_lanes(__m256 v) {
    const V bits = _mm256_castps_si256(v);
    const V odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const V rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const V nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
}
BITNET_INLINE __m128i to_bfloat16(__m256 v) {
    const V lanes = bfloat16_lanes(v);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(lanes, lanes), 0x08));
}
BITNET_INLINE __m128i to_float16(__m256 v) {
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256 canonical = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(kQuietNaNBits)));
    return _mm256_cvtps_ph(_mm256_blendv_ps(v, canonical, nan), _MM_FROUND_TO_NEAREST_INT);
}
BITNET_INLINE __m256 round_lanes(DType dtype, __m256 v) {
    if (dtype == kBFloat16) return _mm256_castsi256_ps(_mm256_slli_epi32(bfloat16_lanes(v), 16));
    if (dtype == kFloat16) return _mm256_cvtph_ps(to_float16(v));
    return v;
}
BITNET_INLINE __m256 load_lanes(const void* base, DType dtype, int64_t i) {
    if (dtype == kBFloat16) return LoadBF16::eight(base, i);
    return dtype == kFloat16 ? LoadF16::eight(base, i) : LoadF32::eight(base, i);
}
BITNET_INLINE void store_lanes(void* base, DType dtype, int64_t i, __m256 v) {
    if (dtype == kFloat32) return _mm256_storeu_ps(static_cast<float*>(base) + i, v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(base) + i),
                     dtype == kBFloat16 ? to_bfloat16(v) : to_float16(v));
}

// Eight outputs of one token. The last panel may hold fewer rows: those go one by one through the portable code.
BITNET_INLINE void store_panel(const TernaryJob& job, int64_t m, int64_t panel, V sum) {
    const int64_t n = panel * kPanelRows;
    if (n + kPanelRows > job.N) {
        int32_t acc[kPanelRows];
        store(acc, sum);
        for (int64_t i = n; i < job.N; ++i)
            store_output(job.y, job.y_dtype, m * job.N + i, acc[i - n], job.x_scale[m],
                         job.w_scale[i * job.w_scale_step], job.bias, job.bias_dtype, i);
        return;
    }
    const __m256 w_scale = job.w_scale_step != 0 ? _mm256_loadu_ps(job.w_scale + n) : _mm256_set1_ps(*job.w_scale);
    const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(job.x_scale[m]), w_scale);
    __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
    if (job.bias != nullptr)
        value = _mm256_add_ps(round_lanes(job.y_dtype, value), load_lanes(job.bias, job.bias_dtype, n));
    store_lanes(job.y, job.y_dtype, m * job.N + n, value);
}

}  // namespace

// The three shapes of the product; ternary_linear_avx2.cpp chooses.
namespace avx2 {
void ternary_gemv(const TernaryJob& job, int64_t first, int64_t last);        // one token
void ternary_few_tokens(const TernaryJob& job, int64_t first, int64_t last);  // a handful
void ternary_gemm(const TernaryJob& job, int64_t first, int64_t last);        // many
}  // namespace avx2
}  // namespace bitnet
