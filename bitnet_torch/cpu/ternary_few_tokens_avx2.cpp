// Ternary product for 2 to 12 tokens: two panels at a time stay in cache and serve the tokens in pairs and fours, with
// the codes unpacked in registers. The limits of the int16 sums are those of ternary_avx2.hpp.
#include "ternary_avx2.hpp"

namespace bitnet {
namespace {

struct Panels {
    const uint8_t *w0, *w1;
};

// Two panels x two tokens; planes 1 and 3 unshifted, as in the one-token kernel.
// total: panel 0 token 0, panel 0 token 1, panel 1 token 0, panel 1 token 1.
BITNET_INLINE void multiply_2x2(V v0, V v1, V mask, const int8_t* x0, const int8_t* x1, V sum[4]) {
    const V xa = broadcast4(x0), xb = broadcast4(x1);
    const V t = _mm256_and_si256(v0, mask), u = _mm256_and_si256(v1, mask);
    multiply_add(sum[0], t, xa);
    multiply_add(sum[1], t, xb);
    multiply_add(sum[2], u, xa);
    multiply_add(sum[3], u, xb);
}
BITNET_INLINE void dot_2x2(Panels p, const int8_t* x0, const int8_t* x1, int64_t steps, V total[4]) {
    const V low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const V one = _mm256_set1_epi16(1), four = _mm256_set1_epi16(4);
    for (int i = 0; i < 4; ++i) total[i] = zero();
    int64_t at = 0;
    for (int64_t s0 = 0; s0 < steps; s0 += 32) {
        const int64_t end = s0 + 32 < steps ? s0 + 32 : steps;
        V a[4] = {zero(), zero(), zero(), zero()};
        for (int64_t s1 = s0; s1 < end; s1 += 8) {
            const int64_t s2 = s1 + 8 < end ? s1 + 8 : end;
            V b[4] = {zero(), zero(), zero(), zero()};
            for (int64_t s = s1; s < s2; ++s, at += kStepBytes, x0 += kStepK, x1 += kStepK) {
                prefetch((s & 1 ? p.w0 : p.w1) + at + kPrefetchBytes);
                V v0 = load(p.w0 + at), v1 = load(p.w1 + at);
                multiply_2x2(v0, v1, low, x0, x1, a);
                multiply_2x2(v0, v1, high, x0 + 4, x1 + 4, b);
                v0 = _mm256_srli_epi16(v0, 4);
                v1 = _mm256_srli_epi16(v1, 4);
                multiply_2x2(v0, v1, low, x0 + 8, x1 + 8, a);
                multiply_2x2(v0, v1, high, x0 + 12, x1 + 12, b);
            }
            for (int i = 0; i < 4; ++i) widen_add(total[i], b[i], one);
        }
        for (int i = 0; i < 4; ++i) widen_add(total[i], a[i], four);
    }
    for (int i = 0; i < 4; ++i) total[i] = _mm256_srai_epi32(total[i], 2);
}

// Two panels x four tokens: one accumulator for each, so every plane is shifted down. total: 4 * panel + token.
BITNET_INLINE void multiply_2x4(V v0, V v1, const int8_t* const x[4], int64_t k, V sum[8]) {
    const V mask = _mm256_set1_epi8(3);
    const V t = _mm256_and_si256(v0, mask), u = _mm256_and_si256(v1, mask);
    for (int i = 0; i < 4; ++i) {
        const V xb = broadcast4(x[i] + k);
        multiply_add(sum[i], t, xb);
        multiply_add(sum[4 + i], u, xb);
    }
}
BITNET_INLINE void dot_2x4(Panels p, const int8_t* const x[4], int64_t steps, V total[8]) {
    const V one = _mm256_set1_epi16(1);
    for (int i = 0; i < 8; ++i) total[i] = zero();
    int64_t at = 0, k = 0;
    for (int64_t s0 = 0; s0 < steps; s0 += 16) {
        const int64_t end = s0 + 16 < steps ? s0 + 16 : steps;
        V a[8] = {zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()};
        for (int64_t s = s0; s < end; ++s, at += kStepBytes, k += kStepK) {
            prefetch((s & 1 ? p.w0 : p.w1) + at + kPrefetchBytes);
            V v0 = load(p.w0 + at), v1 = load(p.w1 + at);
            multiply_2x4(v0, v1, x, k, a);
            for (int plane = 1; plane < 4; ++plane) {
                v0 = _mm256_srli_epi16(v0, 2);
                v1 = _mm256_srli_epi16(v1, 2);
                multiply_2x4(v0, v1, x, k + 4 * plane, a);
            }
        }
        for (int i = 0; i < 8; ++i) widen_add(total[i], a[i], one);
    }
}

// Up to `count` tokens from token m on. A tile that is not full repeats its last token and does not store it.
template <int kTokens>
BITNET_INLINE void tile(const TernaryJob& job, int64_t m, int64_t count, int64_t panel0, int64_t panel1) {
    const int64_t bytes = job.K_padded * 2, steps = job.K_padded / kStepK;
    const Panels p{job.panels + panel0 * bytes, job.panels + panel1 * bytes};
    const int8_t* x[kTokens];
    for (int i = 0; i < kTokens; ++i) x[i] = job.x + (m + (i < count ? i : count - 1)) * job.x_stride;
    V total[2 * kTokens];
    if constexpr (kTokens == 2)
        dot_2x2(p, x[0], x[1], steps, total);
    else
        dot_2x4(p, x, steps, total);
    for (int i = 0; i < count; ++i) {
        const V x_sum = _mm256_set1_epi32(job.x_sum[m + i]);
        store_panel(job, m + i, panel0, _mm256_sub_epi32(total[i], x_sum));
        store_panel(job, m + i, panel1, _mm256_sub_epi32(total[kTokens + i], x_sum));
    }
}

}  // namespace

namespace avx2 {

void ternary_few_tokens(const TernaryJob& job, int64_t first, int64_t last) {
    const int64_t half = (last - first + 1) / 2;
    for (int64_t i = 0; i < half; ++i) {
        const int64_t panel0 = first + i, panel1 = first + i + half < last ? first + i + half : last - 1;
        for (int64_t m = 0; m < job.tokens; m += 4) {
            const int64_t left = job.tokens - m;
            if (left >= 3)
                tile<4>(job, m, left < 4 ? left : 4, panel0, panel1);
            else
                tile<2>(job, m, left, panel0, panel1);
        }
    }
}

}  // namespace avx2
}  // namespace bitnet
