// Int8 product with a byte dot product (vpdpbusd: unsigned times signed bytes, four at a time, added into an int32 lane),
// written once for the x86 widths. A `Wide` says how: its vector, the instructions, and loads that stop at the end of a row.
//
// The codes of the head become unsigned by adding 128, which their highest bit flipped does; 128 * sum(x) is taken off at
// the end. Sums before that may leave int32: they wrap, and wrap back, because additions here are modulo 2^32 and the true
// sum fits.
#pragma once
#include "avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

constexpr int kStreams = 4;  // rows at a time, a quarter of the rows apart: ternary_gemv_avx2.cpp says why

BITNET_INLINE int32_t wrapped_difference(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b));
}

template <class Wide>
int32_t offset_of(const int8_t* x, int64_t K) {
    auto sum = Wide::zero();
    const auto half = Wide::bytes(-128);
    for (int64_t k = 0; k < K; k += Wide::kBytes) sum = Wide::dot(sum, half, Wide::part(x + k, K - k));
    return Wide::total(sum);
}

// kTokens tokens from m on against four rows, which are read once.
template <class Wide, int kTokens>
BITNET_INLINE void int8_tile(const Int8Job& job, int64_t m, const int64_t row[kStreams], const int32_t* offset) {
    using Vec = typename Wide::Vec;
    const Vec half = Wide::bytes(-128);
    const int8_t* x = job.x + m * job.x_stride;
    const int8_t* h[kStreams];
    Vec sum[kTokens][kStreams];
    for (int i = 0; i < kStreams; ++i) {
        h[i] = job.h + row[i] * job.K;
        for (int t = 0; t < kTokens; ++t) sum[t][i] = Wide::zero();
    }
    const int64_t ahead = job.ahead, whole = job.K / Wide::kBytes * Wide::kBytes;
    for (int64_t k = 0; k < whole; k += Wide::kBytes) {
        Vec codes[kStreams];
        for (int i = 0; i < kStreams; ++i) {
            _mm_prefetch(reinterpret_cast<const char*>(h[i] + k) + ahead, _MM_HINT_T0);
            codes[i] = Wide::flip(Wide::load(h[i] + k), half);
        }
        for (int t = 0; t < kTokens; ++t) {
            const Vec v = Wide::load(x + t * job.x_stride + k);
            for (int i = 0; i < kStreams; ++i) sum[t][i] = Wide::dot(sum[t][i], codes[i], v);
        }
    }
    if (whole < job.K)  // what lies past the end is 128 times a zero of x
        for (int t = 0; t < kTokens; ++t) {
            const Vec v = Wide::part(x + t * job.x_stride + whole, job.K - whole);
            for (int i = 0; i < kStreams; ++i)
                sum[t][i] = Wide::dot(sum[t][i], Wide::flip(Wide::part(h[i] + whole, job.K - whole), half), v);
        }
    for (int t = 0; t < kTokens; ++t)
        for (int i = 0; i < kStreams; ++i)
            store_output(job.y, job.y_dtype, (m + t) * job.N + row[i], wrapped_difference(Wide::total(sum[t][i]), offset[t]),
                         job.x_scale[m + t], job.h_scale[row[i]], nullptr, kFloat32, row[i]);
}

template <class Wide, int kTokens>
BITNET_INLINE void int8_tile_of(int64_t count, const Int8Job& job, int64_t m, const int64_t row[kStreams],
                                const int32_t* offset) {
    if (count >= kTokens)
        int8_tile<Wide, kTokens>(job, m, row, offset);
    else if constexpr (kTokens > 1)
        int8_tile_of<Wide, kTokens - 1>(count, job, m, row, offset);
}

// kTokens is the widest tile whose sums stay in registers.
template <class Wide, int kTokens>
BITNET_INLINE void int8_dot_rows(const Int8Job& job, int64_t first, int64_t last) {
    constexpr int64_t kBlock = 64 * kTokens;  // offsets known at a time
    const int64_t quarter = (last - first + kStreams - 1) / kStreams;
    for (int64_t begin = 0; begin < job.tokens; begin += kBlock) {
        const int64_t end = job.tokens - begin < kBlock ? job.tokens : begin + kBlock;
        int32_t offset[kBlock];
        for (int64_t m = begin; m < end; ++m) offset[m - begin] = offset_of<Wide>(job.x + m * job.x_stride, job.K);
        for (int64_t i = 0; i < quarter; ++i) {
            // A quarter that runs past the end repeats the last row, which is then written twice with the same value.
            int64_t row[kStreams];
            for (int j = 0; j < kStreams; ++j) {
                const int64_t n = first + i + j * quarter;
                row[j] = n < last ? n : last - 1;
            }
            for (int64_t m = begin; m < end; m += kTokens)
                int8_tile_of<Wide, kTokens>(end - m, job, m, row, offset + (m - begin));
        }
    }
}

}  // namespace
}  // namespace bitnet
