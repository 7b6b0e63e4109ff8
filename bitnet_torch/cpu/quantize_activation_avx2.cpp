// Activation quantiser, AVX2: cvtps rounds half to even, and the saturating packs are the clamp.
#include "quantize_activation.hpp"

#include "avx2.hpp"
#include "isa.hpp"

namespace bitnet {
namespace {

template <class Load>
void quantize(const void* x, int64_t K, int8_t* q, int64_t K_padded, float* scale, int32_t* sum) {
    const uint32_t max_bits = max_abs_bits<Load>(x, K);
    if (max_bits > kLargestAmaxBits) return poison_row(q, K_padded, scale, sum);
    const ActivationScale s = activation_scale(max_bits);
    const __m256 inverse = _mm256_set1_ps(s.inverse);
    V sums = zero();
    int64_t k = 0;
    for (; k + 32 <= K; k += 32) {
        const V a = _mm256_cvtps_epi32(_mm256_mul_ps(Load::eight(x, k), inverse));
        const V b = _mm256_cvtps_epi32(_mm256_mul_ps(Load::eight(x, k + 8), inverse));
        const V c = _mm256_cvtps_epi32(_mm256_mul_ps(Load::eight(x, k + 16), inverse));
        const V d = _mm256_cvtps_epi32(_mm256_mul_ps(Load::eight(x, k + 24), inverse));
        const V codes = narrow(a, b, c, d);
        store(q + k, codes);
        sums = _mm256_add_epi32(sums, byte_sums(codes));
    }
    int32_t total = horizontal_sum(sums);
    for (; k < K; ++k) {
        q[k] = activation_code(load_float(x, Load::dtype, k), s.inverse);
        total += q[k];
    }
    std::memset(q + K, 0, static_cast<size_t>(K_padded - K));
    *scale = s.scale;
    *sum = total;
}

}  // namespace

namespace avx2 {

void quantize_row(const void* x, DType dtype, int64_t K, int8_t* q, int64_t K_padded, float* scale, int32_t* sum) {
    if (dtype == kFloat32) return quantize<LoadF32>(x, K, q, K_padded, scale, sum);
    if (dtype == kBFloat16) return quantize<LoadBF16>(x, K, q, K_padded, scale, sum);
    quantize<LoadF16>(x, K, q, K_padded, scale, sum);
}

int32_t row_sum(const int8_t* x, int64_t count) {
    V sums = zero();
    int64_t k = 0;
    for (; k + 32 <= count; k += 32) sums = _mm256_add_epi32(sums, byte_sums(load(x + k)));
    int32_t total = horizontal_sum(sums);
    for (; k < count; ++k) total += x[k];
    return total;
}

}  // namespace avx2
}  // namespace bitnet
