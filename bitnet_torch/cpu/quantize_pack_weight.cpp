// W (N, K) -> packed uint8 (ceil(N / 4), K) in the exchange layout, w_scale float32 (1 or N).
#include "threads.hpp"
#include "weight_codes.hpp"
#include "weight_scale.hpp"

using namespace bitnet;

// by_row: w_scale has N elements, else one. kBadValue: a weight is not finite.
BITNET_EXPORT int bitnet_cpu_quantize_pack_weight(const void* w, int dtype, int64_t N, int64_t K, int by_row,
                                                  uint8_t* packed, float* w_scale, int threads) {
    if (!valid_dtype(dtype) || !valid_matrix(N, K) || N * K > kMaxWeightCount) return kInvalidArgument;
    const Kernels& kernel = kernels();
    const FloatState state;
    const DType d = static_cast<DType>(dtype);
    const Ternarised weight{w, d, N, K, N / 4 + (N % 4 != 0), w_scale, by_row != 0 ? 1 : 0};
    threads = useful_threads(clamp_threads(threads), N * K * kWeightWork);
    const int status = by_row != 0 ? row_scales(w, d, N, K, w_scale, threads)
                                   : matrix_scale(w, d, N * K, w_scale, threads);
    if (status != kOk) return status;
    parallel_for(weight.R, even_grain(weight.R, threads, 1), threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            for (int64_t k = 0; k < K; k += kCodesBlock)
                weight.pack(kernel, r, k, K - k < kCodesBlock ? K - k : kCodesBlock, packed + r * K + k);
    });
    return kOk;
}
