// Int8 product, AVX-512 with VNNI: 24 sums, four rows of the head, one vector of x and the constant.
#include "int8_dot.hpp"

namespace bitnet {
namespace {

struct Wide512 {
    using Vec = __m512i;
    static constexpr int64_t kBytes = 64;

    static BITNET_INLINE Vec zero() { return _mm512_setzero_si512(); }
    static BITNET_INLINE Vec bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
    static BITNET_INLINE Vec load(const int8_t* p) { return _mm512_loadu_si512(p); }
    static BITNET_INLINE Vec part(const int8_t* p, int64_t count) {
        if (count >= kBytes) return load(p);
        alignas(64) int8_t rest[kBytes] = {};
        for (int64_t i = 0; i < count; ++i) rest[i] = p[i];
        return load(rest);
    }
    static BITNET_INLINE Vec flip(Vec a, Vec b) { return _mm512_xor_si512(a, b); }
    static BITNET_INLINE Vec dot(Vec sum, Vec codes, Vec x) { return _mm512_dpbusd_epi32(sum, codes, x); }
    static BITNET_INLINE int32_t total(Vec a) {
        return horizontal_sum(_mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1)));
    }
};

}  // namespace

namespace avx512vnni {
void int8_rows(const Int8Job& job, int64_t first, int64_t last) { int8_dot_rows<Wide512, 6>(job, first, last); }
}  // namespace avx512vnni
}  // namespace bitnet
