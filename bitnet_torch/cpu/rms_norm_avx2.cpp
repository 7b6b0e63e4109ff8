// RMSNorm of a row, AVX2. Three passes over a row that stays in the first-level cache.
#include "rms_norm.hpp"

#include "avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

// Squares of up to 2^44 need 64-bit lanes: the even lanes as they are, the odd ones shifted down.
BITNET_INLINE V add_squares(V sum, __m256 x, __m256 power) {
    const V u = _mm256_cvtps_epi32(_mm256_mul_ps(x, power)), odd = _mm256_srli_epi64(u, 32);
    return _mm256_add_epi64(_mm256_add_epi64(sum, _mm256_mul_epi32(u, u)), _mm256_mul_epi32(odd, odd));
}

template <class Load>
int64_t sum_of_squares(const void* x, int64_t K, float power) {
    const __m256 scale = _mm256_set1_ps(power);
    V a = zero(), b = zero();
    int64_t k = 0;
    for (; k + 16 <= K; k += 16) {
        a = add_squares(a, Load::eight(x, k), scale);
        b = add_squares(b, Load::eight(x, k + 8), scale);
    }
    int64_t lane[4];
    store(lane, _mm256_add_epi64(a, b));
    int64_t sum = lane[0] + lane[1] + lane[2] + lane[3];
    for (; k < K; ++k) sum += square_term(load_float(x, Load::dtype, k), power);
    return sum;
}

template <class Load, DType dtype>
void norm(const void* x, const float* weight, int64_t K, float eps, float* y) {
    const uint32_t max_bits = max_abs_bits<Load>(x, K);
    if (max_bits >= kLargestNormBits) return poison_norm(y, K);
    const NormPoint point = norm_point(max_bits);
    const float inverse = inverse_rms(sum_of_squares<Load>(x, K, point.power), K, point.exponent, eps);
    const __m256 r = _mm256_set1_ps(inverse);
    int64_t k = 0;
    for (; k + 8 <= K; k += 8) {
        const __m256 scaled = rounded<dtype>(_mm256_mul_ps(Load::eight(x, k), r));
        _mm256_storeu_ps(y + k, rounded<dtype>(_mm256_mul_ps(_mm256_loadu_ps(weight + k), scaled)));
    }
    for (; k < K; ++k) y[k] = normalised(load_float(x, Load::dtype, k), inverse, weight[k], dtype);
}

}  // namespace

namespace avx2 {

void norm_row(const void* x, DType dtype, const float* weight, int64_t K, float eps, DType rounded, float* y) {
    if (dtype == kBFloat16) return norm<LoadBF16, kBFloat16>(x, weight, K, eps, y);
    if (dtype == kFloat16) return norm<LoadF16, kFloat16>(x, weight, K, eps, y);
    if (rounded == kBFloat16) return norm<LoadF32, kBFloat16>(x, weight, K, eps, y);
    if (rounded == kFloat16) return norm<LoadF32, kFloat16>(x, weight, K, eps, y);
    norm<LoadF32, kFloat32>(x, weight, K, eps, y);
}

}  // namespace avx2
}  // namespace bitnet
