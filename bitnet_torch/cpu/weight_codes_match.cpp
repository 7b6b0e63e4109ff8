// Are packed and w_scale what quantize_pack_weight makes of W? One reading of W: the codes are compared under the given
// scale, and maximum and sum, which decide the scale, are taken on the way.
#include <atomic>

#include "threads.hpp"
#include "weight_codes.hpp"
#include "weight_scale.hpp"

using namespace bitnet;

namespace {

bool same_codes(const Kernels& kernel, const Ternarised& weight, int64_t r, int64_t k, int64_t count,
                const uint8_t* packed) {
    uint8_t made[kCodesBlock];
    weight.pack(kernel, r, k, count, made);
    return std::memcmp(made, packed + r * weight.K + k, static_cast<size_t>(count)) == 0;
}

// body(r) says whether the four rows of byte row r are as given; the first that are not end it.
template <class Body>
bool all_rows(int64_t R, int threads, const Body& body) {
    std::atomic<bool> same{true};
    parallel_for(R, even_grain(R, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end && same.load(std::memory_order_relaxed); ++r)
            if (!body(r)) same = false;
    });
    return same;
}

bool matrix_matches(const Kernels& kernel, const Ternarised& weight, const uint8_t* packed, int threads) {
    const int64_t N = weight.N, K = weight.K, R = weight.R;
    Magnitudes magnitudes(weight.w, weight.dtype, N * K);
    const bool same = all_rows(R, threads, [&](int64_t r) {
        for (int64_t k = 0; k < K; k += kMagnitudesBlock) {
            const int64_t count = K - k < kMagnitudesBlock ? K - k : kMagnitudesBlock;
            for (int64_t n = r; n < N; n += R)
                magnitudes.add(element(weight.w, weight.dtype, n * K + k), weight.dtype, count);
            if (!same_codes(kernel, weight, r, k, count, packed)) return false;
        }
        return true;
    });
    return same && magnitudes.finite() &&
           magnitudes.scale(weight.w, weight.dtype, N * K, threads) == *weight.w_scale;
}

bool rows_match(const Kernels& kernel, const Ternarised& weight, const uint8_t* packed, int threads) {
    const int64_t K = weight.K;
    return all_rows(weight.R, threads, [&](int64_t r) {
        for (int64_t n = r; n < weight.N; n += weight.R) {
            float scale;
            if (!row_scale(element(weight.w, weight.dtype, n * K), weight.dtype, K, &scale)) return false;
            if (scale != weight.w_scale[n]) return false;
        }
        for (int64_t k = 0; k < K; k += kCodesBlock)
            if (!same_codes(kernel, weight, r, k, K - k < kCodesBlock ? K - k : kCodesBlock, packed)) return false;
        return true;
    });
}

}  // namespace

// by_row: w_scale has N elements, else one. *match becomes 1 or 0.
BITNET_EXPORT int bitnet_cpu_weight_codes_match(const void* w, int dtype, int64_t N, int64_t K, int by_row,
                                                const uint8_t* packed, const float* w_scale, uint8_t* match,
                                                int threads) {
    if (!valid_dtype(dtype) || !valid_matrix(N, K) || N * K > kMaxWeightCount) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const Ternarised weight{w,       static_cast<DType>(dtype), N, K, N / 4 + (N % 4 != 0),
                            w_scale, by_row != 0 ? 1 : 0};
    threads = useful_threads(clamp_threads(threads), N * K * kWeightWork);
    *match = by_row != 0 ? rows_match(kernel, weight, packed, threads) : matrix_matches(kernel, weight, packed, threads);
    return kOk;
}
