// Gated activation, AVX2: the steps of glu.hpp, eight at a time.
#include "glu.hpp"

#include "exponential_avx2.hpp"

namespace bitnet {
namespace {

BITNET_INLINE __m256 silu(__m256 g) {
    const __m256 negated = _mm256_xor_ps(g, _mm256_set1_ps(-0.0f));
    return _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), exponential(negated)));
}

template <class Load, Activation activation>
void rows(const void* g, const void* u, int64_t count, float* h) {
    const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(kQuietNaNBits)));
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256 gate = Load::eight(g, i), up = Load::eight(u, i);
        __m256 act;
        if constexpr (activation == kSilu)
            act = silu(gate);
        else
            act = _mm256_mul_ps(gate, gate);
        __m256 out = rounded<Load::dtype>(_mm256_mul_ps(rounded<Load::dtype>(act), up));
        if constexpr (activation == kRelu2) {
            out = _mm256_and_ps(out, _mm256_cmp_ps(gate, _mm256_setzero_ps(), _CMP_GT_OQ));
            out = _mm256_or_ps(out, _mm256_and_ps(nan, _mm256_cmp_ps(gate, gate, _CMP_UNORD_Q)));
        }
        _mm256_storeu_ps(h + i, out);
    }
    for (; i < count; ++i)
        h[i] = gated(load_float(g, Load::dtype, i), load_float(u, Load::dtype, i), Load::dtype, activation);
}

template <class Load>
void either(const void* g, const void* u, int64_t count, Activation activation, float* h) {
    if (activation == kSilu) return rows<Load, kSilu>(g, u, count, h);
    rows<Load, kRelu2>(g, u, count, h);
}

}  // namespace

namespace avx2 {

void glu_row(const void* g, const void* u, DType dtype, int64_t count, Activation activation, float* h) {
    if (dtype == kFloat32) return either<LoadF32>(g, u, count, activation, h);
    if (dtype == kBFloat16) return either<LoadBF16>(g, u, count, activation, h);
    either<LoadF16>(g, u, count, activation, h);
}

}  // namespace avx2
}  // namespace bitnet
