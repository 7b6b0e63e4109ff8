// The 256-bit width of ternary_dot.hpp: one panel in a vector. BITNET_DPBUSD256 is the intrinsic, of which AVX-VNNI and
// AVX-512 have each their own.
#pragma once
#include "ternary_avx2.hpp"
#include "ternary_dot.hpp"

namespace bitnet {
namespace {

// Sums of one token, 8 for each of the panels.
BITNET_NOINLINE void store_sums(const TernaryJob& job, int64_t m, const int64_t* panel, int panels, const int32_t* sums) {
    const V x_sum = _mm256_set1_epi32(job.x_sum[m]);
    for (int i = 0; i < panels; ++i)
        store_panel(job, m, panel[i], _mm256_sub_epi32(load(sums + i * kPanelRows), x_sum));
}

struct Wide256 {
    using Vec = V;
    static constexpr int kPanels = 1;

    static BITNET_INLINE Vec load(const uint8_t* const* w, int64_t at) { return bitnet::load(w[0] + at); }
    static BITNET_INLINE Vec zero() { return bitnet::zero(); }
    static BITNET_INLINE Vec bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
    static BITNET_INLINE Vec four(const int8_t* x) { return broadcast4(x); }
    static BITNET_INLINE Vec both(Vec a, Vec b) { return _mm256_and_si256(a, b); }
    template <int kBits>
    static BITNET_INLINE Vec down(Vec a) { return _mm256_srli_epi16(a, kBits); }
    static BITNET_INLINE Vec plus(Vec a, Vec b) { return _mm256_add_epi32(a, b); }
    static BITNET_INLINE Vec quarter(Vec a) { return _mm256_srai_epi32(a, 2); }
    static BITNET_INLINE Vec dot(Vec sum, Vec codes, Vec x) { return BITNET_DPBUSD256(sum, codes, x); }
    static BITNET_INLINE void prefetch(const void* p) { bitnet::prefetch(p); }
    static constexpr auto epilogue = store_sums;
    static BITNET_INLINE void store(int32_t* p, Vec a) { bitnet::store(p, a); }
};

}  // namespace
}  // namespace bitnet
