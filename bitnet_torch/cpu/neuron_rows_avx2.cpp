// Products of listed neurons, AVX2. Layout: neuron_rows.hpp; int16 limits: ternary_avx2.hpp.
#include "neuron_rows.hpp"
#include "ternary_avx2.hpp"

namespace bitnet {
namespace {

// Into the second-level cache, far ahead: the first level keeps too few misses in flight for scattered lines.
constexpr int64_t kNeuronsAhead = 64;
BITNET_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// One row. A chunk adds up eight products, of at most 512 each, in int16.
BITNET_INLINE int32_t dot(const uint8_t* row, const int8_t* x, int64_t chunks) {
    const V mask = _mm256_set1_epi8(3), one = _mm256_set1_epi16(1);
    V total = zero();
    for (int64_t c = 0; c < chunks; ++c, row += kChunkBytes, x += kChunkCodes) {
        V sum = zero();
        for (int half = 0; half < 2; ++half) {
            const V v = load(row + 32 * half);
            const int8_t* at = x + 32 * half;
            multiply_add(sum, _mm256_and_si256(v, mask), load(at));
            multiply_add(sum, _mm256_and_si256(_mm256_srli_epi16(v, 2), mask), load(at + 64));
            multiply_add(sum, _mm256_and_si256(_mm256_srli_epi16(v, 4), mask), load(at + 128));
            multiply_add(sum, _mm256_and_si256(_mm256_srli_epi16(v, 6), mask), load(at + 192));
        }
        widen_add(total, sum, one);
    }
    return horizontal_sum(total);
}

// Sums of 32 bytes of a chunk: their four fields, `low` of bytes 0..7 and 16..23, `high` of the others.
struct Half {
    V low[4], high[4];
};
BITNET_INLINE void add_words(int32_t* sums, V words) {
    const V first = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(words));
    const V second = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(words, 1));
    store(sums, _mm256_add_epi32(load(sums), first));
    store(sums + 16, _mm256_add_epi32(load(sums + 16), second));
}
BITNET_INLINE void flush(Half& half, int32_t* sums) {
    for (int p = 0; p < 4; ++p) {
        add_words(sums + 64 * p, half.low[p]);
        add_words(sums + 64 * p + 8, half.high[p]);
        half.low[p] = half.high[p] = zero();
    }
}
// Two neurons: their bytes side by side, so that one maddubs adds both.
BITNET_INLINE void add_pair(Half& half, V a, V b, V x) {
    const V mask = _mm256_set1_epi8(3);
    V low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    for (int p = 0; p < 4; ++p) {
        multiply_add(half.low[p], _mm256_and_si256(low, mask), x);
        multiply_add(half.high[p], _mm256_and_si256(high, mask), x);
        low = _mm256_srli_epi16(low, 2);
        high = _mm256_srli_epi16(high, 2);
    }
}

void add_half(const NeuronJob& job, const uint8_t* codes, int32_t* sums) {
    constexpr int64_t kPairs = 64;  // of 512 each, in int16
    const int64_t stride = job.chunks * kChunkBytes;
    Half half;
    for (int p = 0; p < 4; ++p) half.low[p] = half.high[p] = zero();
    for (int64_t i = 0; i < job.count; i += 2) {
        const int64_t ahead = i + kNeuronsAhead < job.count ? i + kNeuronsAhead : job.count - 1;
        prefetch_far(codes + job.list[ahead] * stride);
        const bool two = i + 1 < job.count;
        const int32_t a = job.list[i], b = job.list[two ? i + 1 : i];
        const int32_t x = (job.x[a] & 0xff) | (two ? job.x[b] & 0xff : 0) << 8;
        add_pair(half, load(codes + a * stride), load(codes + b * stride), _mm256_set1_epi16(static_cast<int16_t>(x)));
        if (i / 2 % kPairs == kPairs - 1) flush(half, sums);
    }
    flush(half, sums);
}

}  // namespace

namespace avx2 {

void neuron_dots(const NeuronJob& job, int64_t first, int64_t last) {
    const int64_t stride = job.chunks * kChunkBytes;
    for (int64_t i = first; i < last; ++i) {
        const uint8_t* next = job.codes + job.list[i + 8 < last ? i + 8 : last - 1] * stride;
        for (int64_t at = 0; at < stride; at += kChunkBytes) prefetch_far(next + at);
        job.sums[job.list[i]] = dot(job.codes + job.list[i] * stride, job.x, job.chunks);
    }
}

void neuron_adds(const NeuronJob& job, int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
        int32_t* sums = job.sums + chunk * kChunkCodes;
        std::memset(sums, 0, kChunkCodes * sizeof *sums);
        for (int64_t half = 0; half < 2; ++half)
            add_half(job, job.codes + chunk * kChunkBytes + 32 * half, sums + 32 * half);
    }
}

void ternary_finish(const TernaryJob& job, const int32_t* sums, int64_t first, int64_t last) {
    const V x_sum = _mm256_set1_epi32(*job.x_sum);
    for (int64_t panel = first; panel < last; ++panel)
        store_panel(job, 0, panel, _mm256_sub_epi32(load(sums + panel * kPanelRows), x_sum));
}

}  // namespace avx2
}  // namespace bitnet
