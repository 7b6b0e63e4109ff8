// weight (N, K), h int8 (N, K), h_scale (N) -> bounds (2, N). Contract: head_bounds in bitnet_torch/ops/screened_top_k.py.
#include <cmath>

#include "isa.hpp"
#include "threads.hpp"

namespace bitnet {
namespace {

constexpr double kSlack = 1.0 + 0x1p-18;
constexpr float kLeast = 0x1p-100f;

float at_least(double value) {
    const float rounded = static_cast<float>(value);
    return rounded < kLeast ? kLeast : rounded;  // NaN stays
}

}  // namespace
}  // namespace bitnet

BITNET_EXPORT int bitnet_cpu_head_bounds(const void* weight, int dtype, const int8_t* h, const float* h_scale, int64_t N,
                                         int64_t K, float* bounds, int threads) {
    using namespace bitnet;
    if (!valid_dtype(dtype) || !valid_matrix(N, K) || K > kMaxInFeatures) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    const double c = static_cast<double>(K + 8) * 0x1p-24, gamma = c / (1.0 - c);
    threads = useful_threads(clamp_threads(threads), N * K * 16);
    parallel_for(N, even_grain(N, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            const HeadSums sums = kernel.head_sums(element(weight, d, n * K), d, h + n * K, h_scale[n], K);
            bounds[n] = at_least((std::sqrt(sums.off) + gamma * std::sqrt(sums.weight)) * kSlack);
            bounds[N + n] = at_least(std::sqrt(sums.code) * kSlack);
        }
    });
    return kOk;
}
