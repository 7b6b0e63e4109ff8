// Ternary product, AVX-VNNI: one panel in a vector, 16 registers (Intel from Alder Lake on, AMD from Zen 5 on).
#include "ternary_dot_x86.hpp"

namespace bitnet {
namespace {

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
    static BITNET_INLINE Vec dot(Vec sum, Vec codes, Vec x) { return _mm256_dpbusd_avx_epi32(sum, codes, x); }
    static BITNET_INLINE void prefetch(const void* p) { bitnet::prefetch(p); }
    static constexpr auto epilogue = store_sums;
    static BITNET_INLINE void store(int32_t* p, Vec a) { bitnet::store(p, a); }
};

}  // namespace

namespace avxvnni {

// 8 sums, 2 packed vectors, 2 of codes, the mask and one of x.
void ternary_panels(const TernaryJob& job, int64_t first, int64_t last) {
    if (job.tokens == 1) return gemv<Wide256, 4>(job, first, last);
    gemm<Wide256, 2, 4>(job, first, last);
}

}  // namespace avxvnni
}  // namespace bitnet
