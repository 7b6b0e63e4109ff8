// Activation quantiser, portable.
#include "quantize_activation.hpp"

#include "isa.hpp"

namespace bitnet {
namespace scalar {

void quantize_row(const void* x, DType dtype, int64_t K, int8_t* q, int64_t K_padded, float* scale, int32_t* sum) {
    uint32_t max_bits = 0;
    for (int64_t k = 0; k < K; ++k) {
        const uint32_t bits = bits_of(load_float(x, dtype, k)) & kAbsMask;
        max_bits = bits > max_bits ? bits : max_bits;
    }
    if (max_bits > kLargestAmaxBits) return poison_row(q, K_padded, scale, sum);
    const ActivationScale s = activation_scale(max_bits);
    int32_t total = 0;
    for (int64_t k = 0; k < K; ++k) {
        q[k] = activation_code(load_float(x, dtype, k), s.inverse);
        total += q[k];
    }
    std::memset(q + K, 0, static_cast<size_t>(K_padded - K));
    *scale = s.scale;
    *sum = total;
}

int32_t row_sum(const int8_t* x, int64_t count) {
    int32_t sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += x[k];
    return sum;
}

}  // namespace scalar
}  // namespace bitnet
