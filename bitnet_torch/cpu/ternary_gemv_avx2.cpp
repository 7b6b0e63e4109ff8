// Ternary product for one token: bound by memory, so it reads four streams at once.
//
// One linear stream cannot keep enough cache misses in flight while the arithmetic fills the reorder buffer; four
// streams, a quarter of the panels apart, can (adjacent panels cannot: they share pages and prefetchers).
// For 32 packed bytes (128 weights): 1 shift, 4 and, 4 maddubs, 4 additions. Planes 1 and 3 are not shifted down: their
// codes count as 0, 4, 8 in a second sum, so that 4 * total = 4 * a + b, and the final shift by 2 is exact.
// |4 * total| <= 4 * 2 * 128 * K = 2^27 at K = 131072.
#include "ternary_avx2.hpp"

namespace bitnet {
namespace {

constexpr int kStreams = 4;
// The widest exact int16 sums, in steps: 2 maddubs of at most 512 a step, and 2 of at most 2048.
constexpr int64_t kStepsLow = 32, kStepsHigh = 8;

struct Streams {
    const uint8_t* w[kStreams];
};

BITNET_INLINE void multiply_planes(const V v[kStreams], V mask, V x, V sum[kStreams]) {
    for (int i = 0; i < kStreams; ++i) multiply_add(sum[i], _mm256_and_si256(v[i], mask), x);
}

BITNET_INLINE void dot_streams(const Streams& s, const int8_t* x, int64_t steps, int64_t ahead, V total[kStreams]) {
    const V low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const V one = _mm256_set1_epi16(1), four = _mm256_set1_epi16(4);
    const uint8_t *w0 = s.w[0], *w1 = s.w[1], *w2 = s.w[2], *w3 = s.w[3];
    for (int i = 0; i < kStreams; ++i) total[i] = zero();
    int64_t at = 0;
    for (int64_t s0 = 0; s0 < steps; s0 += kStepsLow) {
        const int64_t end = s0 + kStepsLow < steps ? s0 + kStepsLow : steps;
        V a[kStreams] = {zero(), zero(), zero(), zero()};
        for (int64_t s1 = s0; s1 < end; s1 += kStepsHigh) {
            const int64_t s2 = s1 + kStepsHigh < end ? s1 + kStepsHigh : end;
            V b[kStreams] = {zero(), zero(), zero(), zero()};
            for (int64_t step = s1; step < s2; ++step, at += kStepBytes, x += kStepK) {
                // Each 64-byte line once: a line is two steps.
                prefetch((step & 1 ? w0 : w2) + at + ahead);
                prefetch((step & 1 ? w1 : w3) + at + ahead);
                V v[kStreams] = {load(w0 + at), load(w1 + at), load(w2 + at), load(w3 + at)};
                multiply_planes(v, low, broadcast4(x), a);
                multiply_planes(v, high, broadcast4(x + 4), b);
                for (int i = 0; i < kStreams; ++i) v[i] = _mm256_srli_epi16(v[i], 4);
                multiply_planes(v, low, broadcast4(x + 8), a);
                multiply_planes(v, high, broadcast4(x + 12), b);
            }
            for (int i = 0; i < kStreams; ++i) widen_add(total[i], b[i], one);
        }
        for (int i = 0; i < kStreams; ++i) widen_add(total[i], a[i], four);
    }
}

}  // namespace

namespace avx2 {

void ternary_gemv(const TernaryJob& job, int64_t first, int64_t last) {
    const int64_t bytes = job.K_padded * 2, quarter = (last - first + kStreams - 1) / kStreams;
    const V x_sum = _mm256_set1_epi32(job.x_sum[0]);
    for (int64_t i = 0; i < quarter; ++i) {
        // A quarter that runs past the end repeats the last panel, which is then written twice with the same values.
        int64_t panel[kStreams];
        Streams s;
        for (int j = 0; j < kStreams; ++j) {
            const int64_t p = first + i + j * quarter;
            panel[j] = p < last ? p : last - 1;
            s.w[j] = job.panels + panel[j] * bytes;
        }
        V total[kStreams];
        dot_streams(s, job.x, job.K_padded / kStepK, job.ahead, total);
        for (int j = 0; j < kStreams; ++j)
            store_panel(job, 0, panel[j], _mm256_sub_epi32(_mm256_srai_epi32(total[j], 2), x_sum));
    }
}

}  // namespace avx2
}  // namespace bitnet
