// Tiles of float_tile.hpp, AVX2: 6 x 16 sums in twelve registers. Products and additions are separate operations, as
// everywhere here; they use different ports of a Zen core.
#include "avx2.hpp"
#include "float_tile.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

// The sums of one row. Six of them by name and not in an array: gcc would write an array to memory at every step.
struct Sums {
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();

    BITNET_INLINE void add_products(const float* a, __m256 b0, __m256 b1) {
        const __m256 row = _mm256_broadcast_ss(a);
        low = _mm256_add_ps(low, _mm256_mul_ps(row, b0));
        high = _mm256_add_ps(high, _mm256_mul_ps(row, b1));
    }
    BITNET_INLINE void store(float* c, bool add) const {
        _mm256_storeu_ps(c, add ? _mm256_add_ps(_mm256_loadu_ps(c), low) : low);
        _mm256_storeu_ps(c + 8, add ? _mm256_add_ps(_mm256_loadu_ps(c + 8), high) : high);
    }
};
// Eight codes of a field, at the low end of bytes, as -1, 0, 1.
BITNET_INLINE __m256 code_lanes(__m128i fields) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(fields), _mm256_set1_epi32(1)));
}

}  // namespace

namespace avx2 {

void product_tile(const float* a, const float* b, int64_t depth, bool add, float* c) {
    Sums r0, r1, r2, r3, r4, r5;
    for (int64_t d = 0; d < depth; ++d, a += kTileRows, b += kStripK) {
        const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
        r0.add_products(a, b0, b1);
        r1.add_products(a + 1, b0, b1);
        r2.add_products(a + 2, b0, b1);
        r3.add_products(a + 3, b0, b1);
        r4.add_products(a + 4, b0, b1);
        r5.add_products(a + 5, b0, b1);
    }
    r0.store(c, add);
    r1.store(c + kStripK, add);
    r2.store(c + 2 * kStripK, add);
    r3.store(c + 3 * kStripK, add);
    r4.store(c + 4 * kStripK, add);
    r5.store(c + 5 * kStripK, add);
}

void ternary_strip(const uint8_t* packed, int64_t stride, int64_t rows, float* b) {
    const __m128i mask = _mm_set1_epi8(3);
    for (int64_t r = 0; r < rows; ++r, packed += stride) {
        __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
        for (int j = 0; j < 4; ++j, b += kStripK, bytes = _mm_srli_epi16(bytes, 2)) {
            const __m128i fields = _mm_and_si128(bytes, mask);
            _mm256_storeu_ps(b, code_lanes(fields));
            _mm256_storeu_ps(b + 8, code_lanes(_mm_srli_si128(fields, 8)));
        }
    }
}

void int8_strip(const int8_t* x, int64_t stride, const float* scale, int64_t rows, float* b) {
    for (int64_t r = 0; r < rows; ++r, x += stride, b += kStripK) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        const __m256 quantum = _mm256_broadcast_ss(scale + r);
        const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
        const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)));
        _mm256_storeu_ps(b, _mm256_mul_ps(low, quantum));
        _mm256_storeu_ps(b + 8, _mm256_mul_ps(high, quantum));
    }
}

}  // namespace avx2
}  // namespace bitnet
