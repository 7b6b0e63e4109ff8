// The mean |W| decides codes, so its bits may not depend on the order of the threads: |W| becomes a fixed-point number
// whose binary point comes from the maximum, and the sum is an integer sum.
#include "weight_scale.hpp"

#include <atomic>
#include <cmath>

#include "number.hpp"
#include "threads.hpp"

namespace bitnet {
namespace {

constexpr float kSmallestScale = 1e-5f;
constexpr int64_t kChunk = int64_t{1} << 16;

struct FixedPoint {
    int k;        // a term is rne(|w| * 2^k) <= 2^30
    float power;  // 2^k
};
FixedPoint fixed_point(float max) {
    int exponent;
    std::frexp(max, &exponent);
    return {30 - exponent, std::ldexp(1.0f, 30 - exponent)};
}
float mean_scale(int64_t sum, int64_t count, int k) {
    const float mean = static_cast<float>(sum) / static_cast<float>(count);
    const float scale = std::ldexp(mean, -k);
    return scale > kSmallestScale ? scale : kSmallestScale;
}
void atomic_max(std::atomic<uint32_t>& target, uint32_t value) {
    uint32_t old = target.load();
    while (old < value && !target.compare_exchange_weak(old, value)) {
    }
}

}  // namespace

int matrix_scale(const void* w, DType dtype, int64_t count, float* w_scale, int threads) {
    const Kernels& kernel = kernels();
    std::atomic<uint32_t> max_bits{0};
    parallel_for(count, kChunk, threads, [&](int64_t begin, int64_t end) {
        atomic_max(max_bits, kernel.weight_max(element(w, dtype, begin), dtype, end - begin));
    });
    if (max_bits.load() >= kInfinityBits) return kBadValue;
    *w_scale = kSmallestScale;
    const float max = float_of(max_bits.load());
    if (max < kSmallestScale) return kOk;
    const FixedPoint point = fixed_point(max);
    std::atomic<int64_t> sum{0};
    parallel_for(count, kChunk, threads, [&](int64_t begin, int64_t end) {
        sum += kernel.weight_sum(element(w, dtype, begin), dtype, end - begin, point.power);
    });
    *w_scale = mean_scale(sum.load(), count, point.k);
    return kOk;
}

int row_scales(const void* w, DType dtype, int64_t N, int64_t K, float* w_scale, int threads) {
    const Kernels& kernel = kernels();
    std::atomic<bool> bad{false};
    parallel_for(N, even_grain(N, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            const void* row = element(w, dtype, n * K);
            const uint32_t max_bits = kernel.weight_max(row, dtype, K);
            if (max_bits >= kInfinityBits) {
                bad = true;
                return;
            }
            w_scale[n] = kSmallestScale;
            const float max = float_of(max_bits);
            if (max < kSmallestScale) continue;
            const FixedPoint point = fixed_point(max);
            w_scale[n] = mean_scale(kernel.weight_sum(row, dtype, K, point.power), K, point.k);
        }
    });
    return bad ? kBadValue : kOk;
}

}  // namespace bitnet
