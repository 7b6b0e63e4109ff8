// Rotary embedding of one head, AVX2.
#include "avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

template <class Load>
void turn(const void* x, const float* cos, const float* sin, int64_t half, void* y) {
    int64_t j = 0;
    for (; j + 8 <= half; j += 8) {
        const __m256 x1 = Load::eight(x, j), x2 = Load::eight(x, j + half);
        const __m256 c = _mm256_loadu_ps(cos + j), s = _mm256_loadu_ps(sin + j);
        const __m256 y1 = _mm256_sub_ps(_mm256_mul_ps(x1, c), _mm256_mul_ps(x2, s));
        const __m256 y2 = _mm256_add_ps(_mm256_mul_ps(x2, c), _mm256_mul_ps(x1, s));
        store_eight<Load::dtype>(y, j, y1);
        store_eight<Load::dtype>(y, j + half, y2);
    }
    for (; j < half; ++j) {
        const float x1 = load_float(x, Load::dtype, j), x2 = load_float(x, Load::dtype, j + half);
        const float a = x1 * cos[j], b = x2 * sin[j], c = x2 * cos[j], d = x1 * sin[j];
        store_float(y, Load::dtype, j, a - b);
        store_float(y, Load::dtype, j + half, c + d);
    }
}

}  // namespace

namespace avx2 {

void rope_row(const void* x, DType dtype, const float* cos, const float* sin, int64_t half, void* y) {
    if (dtype == kFloat32) return turn<LoadF32>(x, cos, sin, half, y);
    if (dtype == kBFloat16) return turn<LoadBF16>(x, cos, sin, half, y);
    turn<LoadF16>(x, cos, sin, half, y);
}

}  // namespace avx2
}  // namespace bitnet
