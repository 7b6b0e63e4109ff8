// Ternary product, AVX-512 with VNNI: two panels in a vector, 32 registers.
#include "ternary_dot_x86.hpp"

namespace bitnet {
namespace {

struct Wide512 {
    using Vec = __m512i;
    static constexpr int kPanels = 2;

    static BITNET_INLINE Vec load(const uint8_t* const* w, int64_t at) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(bitnet::load(w[0] + at)), bitnet::load(w[1] + at), 1);
    }
    static BITNET_INLINE Vec zero() { return _mm512_setzero_si512(); }
    static BITNET_INLINE Vec bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
    static BITNET_INLINE Vec four(const int8_t* x) {
        int32_t word;
        std::memcpy(&word, x, 4);
        return _mm512_set1_epi32(word);
    }
    static BITNET_INLINE Vec both(Vec a, Vec b) { return _mm512_and_si512(a, b); }
    template <int kBits>
    static BITNET_INLINE Vec down(Vec a) { return _mm512_srli_epi16(a, kBits); }
    static BITNET_INLINE Vec plus(Vec a, Vec b) { return _mm512_add_epi32(a, b); }
    static BITNET_INLINE Vec quarter(Vec a) { return _mm512_srai_epi32(a, 2); }
    static BITNET_INLINE Vec dot(Vec sum, Vec codes, Vec x) { return _mm512_dpbusd_epi32(sum, codes, x); }
    static BITNET_INLINE void prefetch(const void* p) { bitnet::prefetch(p); }
    static constexpr auto epilogue = store_sums;
    static BITNET_INLINE void store(int32_t* p, Vec a) { _mm512_storeu_si512(p, a); }
};

constexpr int kStreams = 4;

BITNET_INLINE __m512i lower_half(V v) { return _mm512_inserti64x4(_mm512_setzero_si512(), v, 0); }

// One token, four streams. A vector is two steps of one panel, which lie side by side: its lower half sums the even steps
// and its upper half the odd ones, and x is spread to match. Half the instructions of one step at a time, which pays
// because arithmetic and memory overlap but in part. Eight streams were slower than four.
BITNET_INLINE void multiply_two_steps(const __m512i v[kStreams], __m512i x, __m512i a[kStreams], __m512i b[kStreams]) {
    const __m512i low = Wide512::bytes(3), high = Wide512::bytes(12);
    const __m512i plane = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i plane1 = _mm512_add_epi32(plane, one), plane2 = _mm512_add_epi32(plane1, one);
    const __m512i x0 = _mm512_permutexvar_epi32(plane, x), x1 = _mm512_permutexvar_epi32(plane1, x);
    const __m512i x2 = _mm512_permutexvar_epi32(plane2, x);
    const __m512i x3 = _mm512_permutexvar_epi32(_mm512_add_epi32(plane2, one), x);
    for (int i = 0; i < kStreams; ++i) {
        const __m512i u = _mm512_srli_epi16(v[i], 4);
        a[i] = _mm512_dpbusd_epi32(a[i], _mm512_and_si512(v[i], low), x0);
        b[i] = _mm512_dpbusd_epi32(b[i], _mm512_and_si512(v[i], high), x1);
        a[i] = _mm512_dpbusd_epi32(a[i], _mm512_and_si512(u, low), x2);
        b[i] = _mm512_dpbusd_epi32(b[i], _mm512_and_si512(u, high), x3);
    }
}

BITNET_INLINE void one_token_two_steps(const TernaryJob& job, const PanelSet<kStreams>& set) {
    __m512i a[kStreams], b[kStreams], v[kStreams];
    for (int i = 0; i < kStreams; ++i) a[i] = b[i] = _mm512_setzero_si512();
    const int64_t bytes = job.K_padded * 2, ahead = job.ahead;
    const int8_t* x = job.x;
    int64_t at = 0;
    for (; at + 2 * kStepBytes <= bytes; at += 2 * kStepBytes, x += 2 * kStepK) {
        for (int i = 0; i < kStreams; ++i) {
            prefetch(set.w[i] + at + ahead);
            v[i] = _mm512_loadu_si512(set.w[i] + at);
        }
        multiply_two_steps(v, _mm512_broadcast_i64x4(load(x)), a, b);
    }
    if (at < bytes) {  // an odd step: the upper half multiplies nothing
        for (int i = 0; i < kStreams; ++i) v[i] = lower_half(load(set.w[i] + at));
        const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        multiply_two_steps(v, lower_half(_mm256_inserti128_si256(zero(), last, 0)), a, b);
    }
    alignas(32) int32_t sums[kStreams * kPanelRows];
    for (int i = 0; i < kStreams; ++i) {
        const __m512i both = _mm512_add_epi32(a[i], _mm512_srai_epi32(b[i], 2));
        const V sum = _mm256_add_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
        store(sums + i * kPanelRows, sum);
    }
    store_sums(job, 0, set.panel, kStreams, sums);
}

void gemv(const TernaryJob& job, int64_t first, int64_t last) {
    const int64_t apart = (last - first + kStreams - 1) / kStreams;
    for (int64_t i = 0; i < apart; ++i) one_token_two_steps(job, PanelSet<kStreams>(job, first, last, i, apart));
}

}  // namespace

namespace avx512vnni {

// The tile: 24 sums, 2 packed vectors, 2 of codes, the mask and one of x.
void ternary_panels(const TernaryJob& job, int64_t first, int64_t last) {
    if (job.tokens == 1) return gemv(job, first, last);
    gemm<Wide512, 2, 12>(job, first, last);
}

}  // namespace avx512vnni
}  // namespace bitnet
