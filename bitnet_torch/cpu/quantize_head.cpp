// weight (N, K) -> h int8 (N, K), h_scale (N). Contract: bitnet_torch/ops/quantize_head.py.
#include <cstring>

#include "isa.hpp"
#include "number.hpp"
#include "threads.hpp"

namespace bitnet {
namespace {

constexpr float kMinHeadScale = 1e-12f;

float quantize_head_row(const Kernels& kernel, const void* w, DType dtype, int64_t K, int8_t* h) {
    const uint32_t max_bits = kernel.weight_max(w, dtype, K);
    if (max_bits >= kInfinityBits) {
        std::memset(h, 0, static_cast<size_t>(K));
        return float_of(kQuietNaNBits);
    }
    const float quotient = float_of(max_bits) / 127.0f;
    const float scale = quotient > kMinHeadScale ? quotient : kMinHeadScale;
    kernel.head_codes(w, dtype, K, scale, h);
    return scale;
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_quantize_head(const void* w, int dtype, int64_t N, int64_t K, int8_t* h, float* h_scale,
                                           int threads) {
    using namespace bitnet;
    if (!valid_dtype(dtype) || !valid_matrix(N, K) || K > kMaxInFeatures) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    threads = useful_threads(clamp_threads(threads), N * K * 16);
    parallel_for(N, even_grain(N, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
            h_scale[n] = quantize_head_row(kernel, element(w, d, n * K), d, K, h + n * K);
    });
    return kOk;
}
