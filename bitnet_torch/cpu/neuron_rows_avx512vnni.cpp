// Products of listed neurons, AVX-512 with VNNI. Layout: neuron_rows.hpp.
//
// Both walk the neurons of one or two chunks before they come to the next, so that lines which follow each other in memory
// are read far apart in time: otherwise the hardware takes the first lines of a neuron for a stream and fetches what lies
// behind its end, mostly neurons that nobody reads. Prefetches go to the second-level cache, of which many more misses are
// in flight than of the first. Measured on Zen 4, out of cache, one thread, half of 6912 neurons alive: rows one after
// another 207 us, like this 141; columns with near prefetches 244, like this 122; panel8 with all alive 205. Reading what
// is alive alone takes 95.
#include <immintrin.h>

#include "isa.hpp"
#include "neuron_rows.hpp"
#include "number.hpp"

namespace bitnet {
namespace {

using Z = __m512i;

constexpr int64_t kDotsAhead = 64, kAddsAhead = 128;  // neurons

BITNET_INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
BITNET_INLINE Z low_fields(Z v) { return _mm512_and_si512(v, _mm512_set1_epi8(3)); }
BITNET_INLINE Z high_fields(Z v) { return _mm512_and_si512(v, _mm512_set1_epi8(12)); }  // four times the codes

// Lanes 4l + r of the result: what lanes 4l..4l+3 of v[r] add up to.
BITNET_INLINE Z quarter_sums(const Z v[4]) {
    const Z a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const Z b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
// The 128-bit parts of the result: the sum of a's first two, of its last two, and the same of b.
BITNET_INLINE Z half_sums(Z a, Z b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// Some listed rows, padded to a multiple of 16 by the last; behind them the first ones again, for the prefetches.
struct Rows {
    static constexpr int64_t kMost = 1024;
    int64_t count;
    int32_t list[kMost + kDotsAhead + 16];
    alignas(64) int32_t sums[kMost];

    Rows(const int32_t* from, int64_t n) : count((n + 15) / 16 * 16) {
        for (int64_t i = 0; i < count; ++i) {
            list[i] = from[i < n ? i : n - 1];
            sums[i] = 0;
        }
        for (int64_t i = 0; i < kDotsAhead + 16; ++i) list[count + i] = list[i % count];
    }
};

template <int kChunks>
BITNET_INLINE Z dot(const uint8_t* line, const Z x[4 * kChunks]) {
    Z a = _mm512_setzero_si512(), b = a;
    for (int c = 0; c < kChunks; ++c) {
        const Z v = _mm512_loadu_si512(line + c * kChunkBytes);
        a = _mm512_dpbusd_epi32(a, low_fields(v), x[4 * c]);
        b = _mm512_dpbusd_epi32(b, low_fields(_mm512_srli_epi16(v, 2)), x[4 * c + 1]);
        a = _mm512_dpbusd_epi32(a, low_fields(_mm512_srli_epi16(v, 4)), x[4 * c + 2]);
        b = _mm512_dpbusd_epi32(b, low_fields(_mm512_srli_epi16(v, 6)), x[4 * c + 3]);
    }
    return _mm512_add_epi32(a, b);
}

// All rows by kChunks chunks from `codes` on. No row's sum is stored before four rows are read: the compiler would
// otherwise keep sixteen of them, more than there are registers.
template <int kChunks>
BITNET_INLINE void dots_of_chunks(Rows& rows, const uint8_t* codes, int64_t stride, const int8_t* x) {
    Z xs[4 * kChunks];
    for (int p = 0; p < 4 * kChunks; ++p) xs[p] = _mm512_loadu_si512(x + 64 * p);
    for (int64_t i = 0; i < rows.count; i += 16) {
        const uint8_t* ahead = codes + (i + kDotsAhead < rows.count ? 0 : kChunks * kChunkBytes);
        Z fours[4];
        for (int q = 0; q < 4; ++q) {
            Z v[4];
            for (int r = 0; r < 4; ++r) {
                const int64_t at = i + 4 * q + r;
                for (int c = 0; c < kChunks; ++c) prefetch_far(ahead + rows.list[at + kDotsAhead] * stride + c * kChunkBytes);
                v[r] = dot<kChunks>(codes + rows.list[at] * stride, xs);
            }
            fours[q] = quarter_sums(v);
        }
        const Z sums = half_sums(half_sums(fours[0], fours[1]), half_sums(fours[2], fours[3]));
        _mm512_store_si512(rows.sums + i, _mm512_add_epi32(_mm512_load_si512(rows.sums + i), sums));
    }
}

// Four neurons of one chunk: their bytes side by side, so that one product adds all four. sums[4i + p] holds, in its lane
// 4l + d, what byte 16l + 4i + d and field p stand for; for odd p four times that, below 2^28.
BITNET_INLINE void add_four(const uint8_t* const lines[4], int32_t x, Z sums[16]) {
    const Z a = _mm512_loadu_si512(lines[0]), b = _mm512_loadu_si512(lines[1]);
    const Z c = _mm512_loadu_si512(lines[2]), d = _mm512_loadu_si512(lines[3]);
    const Z ab = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
    const Z cd = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
    const Z bytes[4] = {_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd), _mm512_unpacklo_epi16(ab_high, cd_high),
                        _mm512_unpackhi_epi16(ab_high, cd_high)};
    const Z xs = _mm512_set1_epi32(x);
    for (int i = 0; i < 4; ++i) {
        const Z v = bytes[i], u = _mm512_srli_epi16(v, 4);
        sums[4 * i] = _mm512_dpbusd_epi32(sums[4 * i], low_fields(v), xs);
        sums[4 * i + 1] = _mm512_dpbusd_epi32(sums[4 * i + 1], high_fields(v), xs);
        sums[4 * i + 2] = _mm512_dpbusd_epi32(sums[4 * i + 2], low_fields(u), xs);
        sums[4 * i + 3] = _mm512_dpbusd_epi32(sums[4 * i + 3], high_fields(u), xs);
    }
}

BITNET_INLINE void store_chunk(Z sums[16], int32_t* to) {
    for (int i = 0; i < 16; ++i) {
        const Z s = i % 2 ? _mm512_srai_epi32(sums[i], 2) : sums[i];
        int32_t* at = to + 64 * (i % 4) + 4 * (i / 4);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_extracti32x4_epi32(s, 0));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 16), _mm512_extracti32x4_epi32(s, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 32), _mm512_extracti32x4_epi32(s, 2));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 48), _mm512_extracti32x4_epi32(s, 3));
    }
}

// `more`: the chunk behind is next.
void add_chunk(const NeuronJob& job, int64_t chunk, bool more) {
    const int64_t stride = job.chunks * kChunkBytes, count = job.count;
    const uint8_t* codes = job.codes + chunk * kChunkBytes;
    Z sums[16];
    for (Z& sum : sums) sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 4) {
        const uint8_t* lines[4];
        int8_t x[4];
        for (int64_t j = 0; j < 4; ++j) {
            const int32_t neuron = job.list[i + j < count ? i + j : count - 1];
            lines[j] = codes + neuron * stride;
            x[j] = i + j < count ? job.x[neuron] : static_cast<int8_t>(0);
        }
        if (const int64_t at = i + kAddsAhead; at + 4 <= count)
            for (int j = 0; j < 4; ++j) prefetch_far(codes + job.list[at + j] * stride);
        else if (more && at >= count && at - count + 4 <= count)
            for (int j = 0; j < 4; ++j) prefetch_far(codes + kChunkBytes + job.list[at - count + j] * stride);
        int32_t word;
        std::memcpy(&word, x, 4);
        add_four(lines, word, sums);
    }
    store_chunk(sums, job.sums + chunk * kChunkCodes);
}

}  // namespace

namespace avx512vnni {

void neuron_dots(const NeuronJob& job, int64_t first, int64_t last) {
    const int64_t stride = job.chunks * kChunkBytes;
    for (int64_t begin = first; begin < last; begin += Rows::kMost) {
        const int64_t count = last - begin < Rows::kMost ? last - begin : Rows::kMost;
        Rows rows(job.list + begin, count);
        for (int64_t i = 0; i < count && i < kDotsAhead; ++i) prefetch_far(job.codes + rows.list[i] * stride);
        int64_t chunk = 0;
        for (; chunk + 2 <= job.chunks; chunk += 2)
            dots_of_chunks<2>(rows, job.codes + chunk * kChunkBytes, stride, job.x + chunk * kChunkCodes);
        if (chunk < job.chunks)
            dots_of_chunks<1>(rows, job.codes + chunk * kChunkBytes, stride, job.x + chunk * kChunkCodes);
        for (int64_t i = 0; i < count; ++i) job.sums[job.list[begin + i]] = rows.sums[i];
    }
}

void neuron_adds(const NeuronJob& job, int64_t first, int64_t last) {
    const int64_t stride = job.chunks * kChunkBytes;
    for (int64_t i = 0; i < job.count && i < kAddsAhead; ++i)
        prefetch_far(job.codes + first * kChunkBytes + job.list[i] * stride);
    for (int64_t chunk = first; chunk < last; ++chunk) add_chunk(job, chunk, chunk + 1 < last);
}

int64_t live_gates(const float* g, int64_t first, int64_t count, int32_t* list) {
    int64_t live = 0, i = 0;
    Z index = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(first)),
                               _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (; i < count; i += 16, index = _mm512_add_epi32(index, _mm512_set1_epi32(16))) {
        const __mmask16 there = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xffffu);
        const __m512 x = _mm512_maskz_loadu_ps(there, g + i);
        const __mmask16 alive = _mm512_mask_cmp_ps_mask(there, x, _mm512_setzero_ps(), _CMP_NLE_UQ);
        _mm512_storeu_si512(list + live, _mm512_maskz_compress_epi32(alive, index));
        live += _mm_popcnt_u32(alive);
    }
    return live;
}

int64_t live_codes(const int8_t* x, int64_t count, int32_t* list) {
    int64_t live = 0, i = 0;
    Z index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i < count; i += 16, index = _mm512_add_epi32(index, _mm512_set1_epi32(16))) {
        const __mmask16 there = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xffffu);
        const __m128i codes = _mm_maskz_loadu_epi8(there, x + i);
        const __mmask16 alive = _mm_test_epi8_mask(codes, codes);
        _mm512_storeu_si512(list + live, _mm512_maskz_compress_epi32(alive, index));
        live += _mm_popcnt_u32(alive);
    }
    return live;
}

}  // namespace avx512vnni
}  // namespace bitnet
