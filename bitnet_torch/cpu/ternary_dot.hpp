// Ternary product with a byte dot product (vpdpbusd, sdot: four products of codes and x added into an int32 lane),
// written once for every width. A `Wide` says how: its vector, how many panels one vector holds, the instructions, and the
// epilogue. int32 sums of codes 0, 1, 2 need no widening: |sum| <= 2 * 128 * 131072 = 2^25.
//
// The panels that a vector or a tile takes at a time lie far apart ("streams"): adjacent ones share pages and hardware
// prefetchers, and cannot keep enough cache misses in flight (ternary_gemv_avx2.cpp).
#pragma once
#include "isa.hpp"
#include "number.hpp"
#include "panel8.hpp"

namespace bitnet {
namespace {

// The i-th set of kStreams panels out of [first, last), `apart` panels from one another. A stream that runs past the end
// repeats the last panel, which is then written again with the same values.
template <int kStreams>
struct PanelSet {
    int64_t panel[kStreams];
    const uint8_t* w[kStreams];

    BITNET_INLINE PanelSet(const TernaryJob& job, int64_t first, int64_t last, int64_t i, int64_t apart) {
        for (int j = 0; j < kStreams; ++j) {
            const int64_t p = first + i + j * apart;
            panel[j] = p < last ? p : last - 1;
            w[j] = job.panels + panel[j] * job.K_padded * 2;
        }
    }
};

// One token. For each vector of packed bytes: 1 shift, 4 and, 4 dot products. Planes 1 and 3 are not shifted down: their
// codes count as 0, 4, 8 in a second sum, and the final shift by 2 is exact.
template <class Wide, int kVectors>
BITNET_INLINE void one_token(const TernaryJob& job, const PanelSet<kVectors * Wide::kPanels>& set) {
    using Vec = typename Wide::Vec;
    const Vec low = Wide::bytes(3), high = Wide::bytes(12);
    Vec a[kVectors], b[kVectors];
    for (int i = 0; i < kVectors; ++i) a[i] = b[i] = Wide::zero();
    const int8_t* x = job.x;
    const int64_t ahead = job.ahead;
    for (int64_t at = 0, end = job.K_padded * 2; at < end; at += kStepBytes, x += kStepK) {
        // Each 64-byte line once: a line is two steps, and a step asks for the lines of half of the streams.
        constexpr int kHalf = kVectors * Wide::kPanels / 2;
        const int from = at & kStepBytes ? 0 : kHalf;
        for (int j = 0; j < kHalf; ++j) Wide::prefetch(set.w[from + j] + at + ahead);
        for (int i = 0; i < kVectors; ++i) {
            Vec v = Wide::load(set.w + i * Wide::kPanels, at);
            a[i] = Wide::dot(a[i], Wide::both(v, low), Wide::four(x));
            b[i] = Wide::dot(b[i], Wide::both(v, high), Wide::four(x + 4));
            v = Wide::template down<4>(v);
            a[i] = Wide::dot(a[i], Wide::both(v, low), Wide::four(x + 8));
            b[i] = Wide::dot(b[i], Wide::both(v, high), Wide::four(x + 12));
        }
    }
    constexpr int kPanels = kVectors * Wide::kPanels;
    alignas(64) int32_t sums[kPanels * kPanelRows];
    for (int i = 0; i < kVectors; ++i)
        Wide::store(sums + i * Wide::kPanels * kPanelRows, Wide::plus(a[i], Wide::quarter(b[i])));
    Wide::epilogue(job, 0, set.panel, kPanels, sums);
}

// kTokens tokens from m on, all sums in registers; the codes are unpacked in registers too.
template <class Wide, int kVectors, int kTokens>
BITNET_INLINE void tile(const TernaryJob& job, const PanelSet<kVectors * Wide::kPanels>& set, int64_t m) {
    using Vec = typename Wide::Vec;
    const Vec mask = Wide::bytes(3);
    Vec sum[kTokens][kVectors];
    for (int t = 0; t < kTokens; ++t)
        for (int i = 0; i < kVectors; ++i) sum[t][i] = Wide::zero();
    const int8_t* x = job.x + m * job.x_stride;
    const int64_t stride = job.x_stride, ahead = job.ahead;
    for (int64_t at = 0, end = job.K_padded * 2; at < end; at += kStepBytes, x += kStepK) {
        Vec v[kVectors];
        for (int i = 0; i < kVectors; ++i) {
            Wide::prefetch(set.w[i * Wide::kPanels + (at & kStepBytes ? 0 : Wide::kPanels - 1)] + at + ahead);
            v[i] = Wide::load(set.w + i * Wide::kPanels, at);
        }
        for (int plane = 0; plane < 4; ++plane) {
            Vec codes[kVectors];
            for (int i = 0; i < kVectors; ++i) {
                codes[i] = Wide::both(v[i], mask);
                v[i] = Wide::template down<2>(v[i]);
            }
            for (int t = 0; t < kTokens; ++t) {
                const Vec four = Wide::four(x + t * stride + 4 * plane);
                for (int i = 0; i < kVectors; ++i) sum[t][i] = Wide::dot(sum[t][i], codes[i], four);
            }
        }
    }
    constexpr int kPanels = kVectors * Wide::kPanels;
    alignas(64) int32_t sums[kTokens][kPanels * kPanelRows];
    for (int t = 0; t < kTokens; ++t)
        for (int i = 0; i < kVectors; ++i) Wide::store(sums[t] + i * Wide::kPanels * kPanelRows, sum[t][i]);
    // From memory and out of line: inlined for every token, the epilogue would keep the compiler from holding the sums of
    // the loop above in registers.
    for (int t = 0; t < kTokens; ++t) Wide::epilogue(job, m + t, set.panel, kPanels, sums[t]);
}

// A tile of `count` tokens, at most kTokens.
template <class Wide, int kVectors, int kTokens>
BITNET_INLINE void tile_of(int64_t count, const TernaryJob& job, const PanelSet<kVectors * Wide::kPanels>& set,
                           int64_t m) {
    if (count == kTokens)
        tile<Wide, kVectors, kTokens>(job, set, m);
    else if constexpr (kTokens > 1)
        tile_of<Wide, kVectors, kTokens - 1>(count, job, set, m);
}

// Tokens [m, end) in tiles of nearly equal size: 16 tokens are 8 and 8, not 12 and 4.
template <class Wide, int kVectors, int kTokens>
BITNET_INLINE void tiles(const TernaryJob& job, const PanelSet<kVectors * Wide::kPanels>& set, int64_t m, int64_t end) {
    for (int64_t left = (end - m + kTokens - 1) / kTokens; left > 0; --left) {
        const int64_t count = (end - m + left - 1) / left;
        tile_of<Wide, kVectors, kTokens>(count, job, set, m);
        m += count;
    }
}

template <class Wide, int kVectors>
BITNET_INLINE void gemv(const TernaryJob& job, int64_t first, int64_t last) {
    constexpr int kStreams = kVectors * Wide::kPanels;
    const int64_t apart = (last - first + kStreams - 1) / kStreams;
    for (int64_t i = 0; i < apart; ++i)
        one_token<Wide, kVectors>(job, PanelSet<kStreams>(job, first, last, i, apart));
}

// kVectors x kTokens is the widest tile whose sums stay in registers.
template <class Wide, int kVectors, int kTokens>
BITNET_INLINE void gemm(const TernaryJob& job, int64_t first, int64_t last) {
    constexpr int64_t kBlockTokens = 128;  // their x stays in the second-level cache
    constexpr int kStreams = kVectors * Wide::kPanels;
    const int64_t apart = (last - first + kStreams - 1) / kStreams;
    for (int64_t m = 0; m < job.tokens; m += kBlockTokens) {
        const int64_t end = job.tokens - m < kBlockTokens ? job.tokens : m + kBlockTokens;
        for (int64_t i = 0; i < apart; ++i)
            tiles<Wide, kVectors, kTokens>(job, PanelSet<kStreams>(job, first, last, i, apart), m, end);
    }
}

}  // namespace
}  // namespace bitnet
