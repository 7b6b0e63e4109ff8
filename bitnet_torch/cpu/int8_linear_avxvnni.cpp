// Int8 product, AVX-VNNI: 8 sums, four rows of the head, one vector of x and the constant.
#include "int8_dot.hpp"

namespace bitnet {
namespace {

struct Wide256 {
    using Vec = V;
    static constexpr int64_t kBytes = 32;

    static BITNET_INLINE Vec zero() { return bitnet::zero(); }
    static BITNET_INLINE Vec bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
    static BITNET_INLINE Vec load(const int8_t* p) { return bitnet::load(p); }
    static BITNET_INLINE Vec part(const int8_t* p, int64_t count) {
        if (count >= kBytes) return load(p);
        alignas(32) int8_t rest[kBytes] = {};
        for (int64_t i = 0; i < count; ++i) rest[i] = p[i];
        return load(rest);
    }
    static BITNET_INLINE Vec flip(Vec a, Vec b) { return _mm256_xor_si256(a, b); }
    static BITNET_INLINE Vec dot(Vec sum, Vec codes, Vec x) { return _mm256_dpbusd_avx_epi32(sum, codes, x); }
    static BITNET_INLINE int32_t total(Vec a) { return horizontal_sum(a); }
};

}  // namespace

namespace avxvnni {
void int8_rows(const Int8Job& job, int64_t first, int64_t last) { int8_dot_rows<Wide256, 2>(job, first, last); }
}  // namespace avxvnni
}  // namespace bitnet
