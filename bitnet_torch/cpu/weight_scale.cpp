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

Magnitudes::Magnitudes(const void* w, DType dtype, int64_t count) {
    const uint32_t first = kernels().weight_max(w, dtype, count < kChunk ? count : kChunk);
    // Below the smallest scale nothing is summed; not finite, nothing is asked for.
    const bool usable = first < kInfinityBits && float_of(first) > kSmallestScale;
    point_ = fixed_point(usable ? float_of(first) : kSmallestScale);
    limit_ = bits_of(std::ldexp(1.0f, 30 - point_.k));
}

void Magnitudes::add(const void* w, DType dtype, int64_t count) {
    const Kernels& kernel = kernels();
    const uint32_t max = kernel.weight_max(w, dtype, count);
    atomic_max(max_, max);
    if (max < limit_) sum_ += kernel.weight_sum(w, dtype, count, point_.power);
}

bool Magnitudes::finite() const { return max_.load() < kInfinityBits; }

float Magnitudes::scale(const void* w, DType dtype, int64_t count, int threads) const {
    const float max = float_of(max_.load());
    if (max < kSmallestScale) return kSmallestScale;
    if (max_.load() < limit_) return mean_scale(sum_.load(), count, point_.k);
    const Kernels& kernel = kernels();
    const FixedPoint point = fixed_point(max);
    std::atomic<int64_t> sum{0};
    parallel_for(count, kChunk, threads, [&](int64_t begin, int64_t end) {
        sum += kernel.weight_sum(element(w, dtype, begin), dtype, end - begin, point.power);
    });
    return mean_scale(sum.load(), count, point.k);
}

int matrix_scale(const void* w, DType dtype, int64_t count, float* w_scale, int threads) {
    Magnitudes magnitudes(w, dtype, count);
    parallel_for(count, kChunk, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += kMagnitudesBlock)
            magnitudes.add(element(w, dtype, i), dtype, end - i < kMagnitudesBlock ? end - i : kMagnitudesBlock);
    });
    if (!magnitudes.finite()) return kBadValue;
    *w_scale = magnitudes.scale(w, dtype, count, threads);
    return kOk;
}

bool row_scale(const void* row, DType dtype, int64_t K, float* w_scale) {
    const Kernels& kernel = kernels();
    const uint32_t max_bits = kernel.weight_max(row, dtype, K);
    if (max_bits >= kInfinityBits) return false;
    *w_scale = kSmallestScale;
    const float max = float_of(max_bits);
    if (max < kSmallestScale) return true;
    const FixedPoint point = fixed_point(max);
    *w_scale = mean_scale(kernel.weight_sum(row, dtype, K, point.power), K, point.k);
    return true;
}

int row_scales(const void* w, DType dtype, int64_t N, int64_t K, float* w_scale, int threads) {
    std::atomic<bool> bad{false};
    parallel_for(N, even_grain(N, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end && !bad; ++n)
            if (!row_scale(element(w, dtype, n * K), dtype, K, w_scale + n)) bad = true;
    });
    return bad ? kBadValue : kOk;
}

}  // namespace bitnet
